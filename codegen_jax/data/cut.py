"""Split long documents into chunks, which need little memory to encode and give the same ids as the whole text."""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from codegen_jax.data.tokenizer import Tokenizer

CHUNK_LENGTH = 100_000  # characters
CONTEXT = 1_000  # characters on each side of a candidate cut that are encoded to test it
MAX_CANDIDATES = 50  # consecutive candidates to test before the rest of the text becomes one chunk
CANDIDATE = re.compile(r"(?<=\S)(?=[ \t\r\n\f\v])")  # before whitespace, where most pre-tokenizers end a word


class Cutter:
    """Cuts texts into chunks for one tokenizer.

    A cut between two characters preserves the ids under two conditions. First, no token's text contains the two
    characters side by side, so a token always ends at the cut. Second, the text around the cut gets the same ids when
    it is encoded in two halves as when it is encoded whole. This assumes that pre-tokenization rules, and anything the
    tokenizer adds or strips at the ends of a text, reach no further than `CONTEXT` characters.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def chunks(self, text: str) -> Iterator[str]:
        """Yield a text in chunks of about 100,000 characters, or longer if there is no safe place to cut."""
        start = 0
        while len(text) - start > CHUNK_LENGTH and (cut := self._find_cut(text, start + CHUNK_LENGTH)) is not None:
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _find_cut(self, text: str, start: int) -> int | None:
        """The first safe cut at or after `start`, or None if none of the next `MAX_CANDIDATES` candidates is safe."""
        candidates = (match.start() for match in islice(CANDIDATE.finditer(text, start), MAX_CANDIDATES))
        return next((cut for cut in candidates if self._is_safe(text, cut)), None)

    def _is_safe(self, text: str, cut: int) -> bool:
        before, after = text[cut - 1], text[cut]
        if before + after in self.unsafe_pairs or (not before.isascii() and "\ufffd" + after in self.unsafe_pairs):
            return False
        left, right = text[max(0, cut - CONTEXT) : cut], text[cut : cut + CONTEXT]
        whole, *halves = self.tokenizer.encode_batch([left + right, left, right], special_tokens=False)
        return whole == halves[0] + halves[1]

    @cached_property
    def unsafe_pairs(self) -> set[str]:
        """All pairs of a character and the whitespace after it that occur within the text of a single token.

        Bytes that form only part of a character decode to U+FFFD.
        """
        texts = (self.tokenizer.decode([id]) for id in range(self.tokenizer.vocab_size))
        return {text[at - 1 : at + 1] for text in texts for at in (match.start() for match in CANDIDATE.finditer(text))}
