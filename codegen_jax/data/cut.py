"""Where a long document may be cut, so that it is encoded in little memory and the ids are those of the whole."""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from codegen_jax.data.tokenizer import Tokenizer

PIECE = 100_000  # characters
CONTEXT = 1_000  # characters on each side of a place, that are encoded to try it
TRIES = 50  # places in a row that are tried, before the rest is left whole
PLACE = re.compile(r"(?<=\S)(?=[ \t\r\n\f\v])")  # before whitespace, where words end in most rules


class Cutter:
    """Cuts texts for one tokenizer.

    A cut between two characters keeps the ids if no id's text holds the two next to each other, so that a token ends
    there whatever comes before or after; and if the text around, encoded as two, has the ids that it has as one: rules
    for words, and what a tokenizer adds or strips at the ends of a text, reach no further than that.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def pieces(self, text: str) -> Iterator[str]:
        """A text in pieces of about 100,000 characters; longer where there is no place to cut."""
        start = 0
        while len(text) - start > PIECE and (cut := self._place(text, start + PIECE)) is not None:
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _place(self, text: str, start: int) -> int | None:
        """The first place from `start` on that keeps the ids, if one of the next few does."""
        places = (match.start() for match in islice(PLACE.finditer(text, start), TRIES))
        return next((place for place in places if self._may_cut(text, place)), None)

    def _may_cut(self, text: str, place: int) -> bool:
        before, after = text[place - 1], text[place]
        if before + after in self.held or (not before.isascii() and "\ufffd" + after in self.held):
            return False
        left, right = text[max(0, place - CONTEXT) : place], text[place : place + CONTEXT]
        whole, *halves = self.tokenizer.encode_batch([left + right, left, right], special_tokens=False)
        return whole == halves[0] + halves[1]

    @cached_property
    def held(self) -> set[str]:
        """The pairs of a character and whitespace after it that the text of some id holds.

        Bytes that are a part of a character only are U+FFFD in that text.
        """
        texts = (self.tokenizer.decode([id]) for id in range(self.tokenizer.vocab_size))
        return {text[at - 1 : at + 1] for text in texts for at in (match.start() for match in PLACE.finditer(text))}
