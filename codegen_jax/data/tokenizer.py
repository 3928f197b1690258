"""Text to ids and back: GPT-2's byte-level BPE with CodeGen's whitespace tokens, and sentencepiece models for code."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from codegen_jax.errors import UserError
from codegen_jax.hub import hub_files
from codegen_jax.mistaken_paths import holds, instead, refuse_stand_in
from codegen_jax.storage import local_copy

# Runs of 31..2 spaces are ids 50257..50286, runs of 9..2 tabs 50287..50294 (authors' sample.py); NL models have none.
WHITESPACE_TOKENS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
END_OF_TEXT = "<|endoftext|>"
TRUNCATE_BEFORE = ("^#", re.escape(END_OF_TEXT), "^'''", '^"""', "\n\n\n")  # the authors' sample.py
PIECE = 100_000  # characters
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # in the order that they are looked for
BESIDES = ("merges.txt", "added_tokens.json")  # of vocab.json


class Tokenizer(ABC):
    """What the rest of the program needs of a tokenizer. Encoding adds nothing: no BOS, no eos.

    Attributes:
        vocab_size: number of ids; a model may have more rows, which are never sampled.
        eos_id: the id that ends a document.
        fingerprint: equal for tokenizers that encode alike; travels with token files and checkpoints.
    """

    vocab_size: int
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int], truncate_before: Sequence[str] | None = None) -> str:
        """Text of ids; with `truncate_before`, a list of patterns, cut by `truncate`."""
        text = self._decode(ids)
        return text if truncate_before is None else truncate(text, truncate_before)

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str: ...

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The tokenizer as files by name, for a folder that `load_tokenizer` reads."""

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


class BpeTokenizer(Tokenizer):
    """A model of the `tokenizers` library: GPT-2's vocabulary, with or without the whitespace tokens."""

    def __init__(self, tokenizer_json: str, whitespace_tokens: bool = False):
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer = FastTokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if whitespace_tokens:
            self._tokenizer.add_tokens([AddedToken(token, normalized=False) for token in WHITESPACE_TOKENS])
        eos_id = self._tokenizer.token_to_id(END_OF_TEXT)
        if eos_id is None:
            raise UserError(f"tokenizer.json has no token {END_OF_TEXT}, which ends documents; use a GPT-2 vocabulary")
        self.eos_id = eos_id
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.fingerprint = "bpe-" + hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.json": self._tokenizer.to_str().encode()}


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model made by train_tokenizer.py; any text round-trips exactly."""

    # sentencepiece writes a space as U+2581, so a U+2581 of the text itself goes in as its bytes, ids after <0x00>.
    SPACE = "\u2581"

    def __init__(self, model: bytes):
        from sentencepiece import SentencePieceProcessor

        self._model = model
        self._processor = SentencePieceProcessor(model_proto=model)
        self.eos_id = self._processor.eos_id()
        self.vocab_size = self._processor.vocab_size()
        self.fingerprint = "sentencepiece-" + hashlib.sha256(model).hexdigest()[:16]
        first_byte = self._processor.piece_to_id("<0x00>")
        self._space_ids = [first_byte + byte for byte in self.SPACE.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) if self.SPACE in text else ids for text, ids in zip(texts, self._fast(texts))]

    def _fast(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)  # prepare has a process a core already

    def _encode(self, text: str) -> list[int]:
        first, *others = self._fast(text.split(self.SPACE))
        return first + [id for ids in others for id in (*self._space_ids, *ids)]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(id) for id in ids])

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model}


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of about 100,000 characters, whose ids joined are those of the whole: a piece fits in memory.

    The cut is before a line end that follows no whitespace: there a word of GPT-2's pattern ends, whatever comes next,
    and sentencepiece holds a line end apart. A text without such places stays longer.
    """
    start = 0
    while len(text) - start > PIECE and (cut := re.compile(r"(?<=\S)\n").search(text, start + PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def truncate(completion: str, truncate_before: Sequence[str]) -> str:
    """End a completion where the authors' sample.py does: at its second `print` or second `def` at the start of a line,
    then before the earliest match of any pattern.

    Args:
        completion: text.
        truncate_before: regular expressions, MULTILINE; sample.py's own are `TRUNCATE_BEFORE`.

    Raises:
        UserError: for a pattern that is no regular expression.
    """
    for keyword in ("^print", "^def"):
        starts = [match.start() for match in re.finditer(keyword, completion, re.MULTILINE)]
        completion = completion[: starts[1]] if len(starts) > 1 else completion
    try:
        matches = [re.search(pattern, completion, re.MULTILINE) for pattern in truncate_before]
    except re.error as error:
        raise UserError(f"truncate_before: {error.pattern!r} is not a regular expression ({error})") from error
    return completion[: min((match.start() for match in matches if match), default=len(completion))]


def load_tokenizer(source: epath.PathLike, whitespace_tokens: bool = False) -> Tokenizer:
    """Load a tokenizer from a folder, a file or a hub id.

    Args:
        source: a sentencepiece `.model`, a `tokenizer.json`, a folder with either or with `vocab.json` and
            `merges.txt`, or a hub id such as "Salesforce/codegen-350M-mono", with a revision as "...@REVISION"; a
            folder may be gs:// or s3://.
        whitespace_tokens: add the 38 tokens of Multi and Mono to a GPT-2 vocabulary that lacks them.

    Raises:
        UserError: if there is no such tokenizer, or its file is damaged.
    """
    path = local_copy(source)
    if not path.exists():
        path = hub_files(str(source), [*FILES, *BESIDES])
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        path = next((path / name for name in FILES if (path / name).exists()), path)
        if path.is_dir():
            here = f"it {holds(names)}{instead(path, has_tokenizer)}"
            raise UserError(f"{source}: no tokenizer.json, tokenizer.model or vocab.json here; {here}")
    for file in (path, *(path.parent / name for name in BESIDES if path.name == "vocab.json")):
        if file.exists():
            refuse_stand_in(file)
    try:
        if path.name == "vocab.json":
            return BpeTokenizer(_gpt2_json(path.parent), whitespace_tokens)
        if path.suffix == ".json":
            return BpeTokenizer(path.read_text(encoding="utf-8"), whitespace_tokens)
        if whitespace_tokens:
            raise UserError(f"{source}: whitespace tokens belong to GPT-2's vocabulary, not to sentencepiece")
        return SentencePieceTokenizer(path.read_bytes())
    except UserError:
        raise
    except Exception as error:  # the two libraries raise bare Exception and RuntimeError for a damaged file
        raise UserError(f"{source}: not a tokenizer that can be read ({error}); fetch it again") from error


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def _gpt2_json(folder: Path) -> str:
    """vocab.json, merges.txt and, if there is one, added_tokens.json as one tokenizer.json."""
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    tokenizer = FastTokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    added = folder / "added_tokens.json"
    if added.exists():
        ids = {token: id for token, id in json.loads(added.read_text()).items() if tokenizer.token_to_id(token) is None}
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sorted(ids, key=ids.__getitem__)])
        for token, id in ids.items():
            if tokenizer.token_to_id(token) != id:
                raise UserError(f"{added}: token {token!r} is number {id}, which leaves a gap in the vocabulary")
    return tokenizer.to_str()
