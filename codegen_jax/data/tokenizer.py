"""Tokenizers: GPT-2's byte-level BPE with CodeGen's whitespace tokens, and sentencepiece models for code."""

import hashlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from codegen_jax.data.tokenizer_identity import identity
from codegen_jax.data.tokenizer_metadata import (
    CONFIG,
    NAMED_TEMPLATES,
    NAMES,
    VOCABULARY,
    parse,
    read_metadata,
    special_tokens,
)
from codegen_jax.errors import UserError, listed, require
from codegen_jax.hub import hub_files
from codegen_jax.mistaken_paths import contains, instead, reject_placeholder
from codegen_jax.storage import local_copy

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

log = logging.getLogger(__name__)

# Runs of 31..2 spaces are ids 50257..50286 and runs of 9..2 tabs are ids 50287..50294 (the authors' sample.py). NL
# models have neither.
WHITESPACE_TOKENS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
END_OF_TEXT = "<|endoftext|>"
TRUNCATE_BEFORE = ("^#", re.escape(END_OF_TEXT), "^'''", '^"""', "\n\n\n")  # from the authors' sample.py
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # in order of preference
COMPANIONS = ("merges.txt", "added_tokens.json")  # files that accompany vocab.json


class Tokenizer(ABC):
    """The interface to a tokenizer. Encoding adds neither bos nor eos.

    Attributes:
        vocab_size: number of ids; a model may have more rows in its embedding, which are never sampled.
        eos_id: the id that ends a document; -1 if a sentencepiece model has none, which rules it out for `prepare`.
        end_ids: ids that end a completion: eos_id, and the id of the eos_token in the metadata.
        metadata: files that accompany the tokenizer, such as a chat template; see tokenizer_metadata.py.
    """

    vocab_size: int
    eos_id: int
    end_ids: tuple[int, ...]
    metadata: Mapping[str, bytes]

    @property
    @abstractmethod
    def legacy_fingerprint(self) -> str:
        """A hash of the tokenizer file, which was the fingerprint until November 2026."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash, recorded in manifests, that is equal for tokenizers that encode alike; see `identity`."""
        return identity(*self._vocabulary(), self.eos_id, lambda texts: self.encode_batch(texts, special_tokens=False))

    @abstractmethod
    def _vocabulary(self) -> tuple[list[str], Sequence[Sequence[str | float]]]:
        """The piece of each id, and the rules that form pieces; see `identity`."""

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a fingerprint recorded in a manifest refers to this tokenizer."""
        is_legacy = "-" in fingerprint  # "bpe-...", "sentencepiece-..."
        return fingerprint == (self.legacy_fingerprint if is_legacy else self.fingerprint)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text.

        Args:
            texts: the texts to encode.
            special_tokens: whether <|endoftext|> and other special tokens in a text become their ids, as in
                transformers (right for prompts), or are encoded as plain text (right for documents).
        """

    def decode(self, ids: Sequence[int], truncate_before: Sequence[str] | None = None) -> str:
        """The text of ids, cut by `truncate` if patterns are given in `truncate_before`."""
        text = self._decode(ids)
        return text if truncate_before is None else truncate(text, truncate_before)

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str: ...

    def with_metadata_of(self, other: "Tokenizer | None") -> "Tokenizer":
        """The other tokenizer if it has the same ids plus metadata that this one lacks, else this tokenizer."""
        if other is None or not other.metadata or self.metadata or other.vocab_size != self.vocab_size:
            return self
        return other if self.extends(other) else self

    @abstractmethod
    def id_of(self, token: str) -> int:
        """The id of a special token by its name; <|endoftext|> is eos, whatever its name in the vocabulary.

        Raises:
            UserError: if the vocabulary lacks it.
        """

    @property
    @abstractmethod
    def special_tokens(self) -> list[str]:
        """The special tokens of the vocabulary, by name."""

    @abstractmethod
    def with_special_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with these special tokens; those that it lacks take the ids after the vocabulary."""

    def with_file(self, name: str, content: bytes) -> "Tokenizer":
        """This tokenizer with one more file among its metadata."""
        changed = copy(self)
        changed.metadata = {**self.metadata, name: content}
        return changed

    @abstractmethod
    def is_text_token(self, id: int) -> bool:
        """Whether an id is in the vocabulary and stands for ordinary text rather than a special or added token."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The tokenizer and its metadata as file contents by name, in the form that `load_tokenizer` reads."""

    def extends(self, other: "Tokenizer") -> bool:
        """Whether the ids produced by another tokenizer mean the same text here, as NL's ids do in Multi."""
        if other.fingerprint == self.fingerprint:
            return True
        if other.vocab_size > self.vocab_size or other.eos_id != self.eos_id:
            return False
        texts = {id: other._decode([id]) for id in range(other.vocab_size) if id != self.eos_id}
        encoded = zip(texts, other.encode_batch(list(texts.values())))
        return all(self._decode([id]) == texts[id] for id, ids in encoded if ids == [id])

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).parent.mkdir(exist_ok=True)  # additional_chat_templates/
            (folder / name).write_bytes(content)


class BpeTokenizer(Tokenizer):
    """A tokenizer from the `tokenizers` library, such as GPT-2's BPE, optionally with the whitespace tokens added."""

    def __init__(self, tokenizer_json: str, whitespace_tokens: bool = False, metadata: Mapping[str, bytes] = {}):
        from tokenizers import AddedToken

        self._tokenizer = _plain(tokenizer_json)
        self._json, self.metadata = tokenizer_json, metadata
        if whitespace_tokens:
            self._tokenizer.add_tokens([AddedToken(token, normalized=False) for token in WHITESPACE_TOKENS])
            self._json = self._tokenizer.to_str()
            self.metadata = {name: content for name, content in metadata.items() if name not in VOCABULARY}
        special, to_id = special_tokens(metadata), self._tokenizer.token_to_id
        ends = [id for token in (END_OF_TEXT, special.get("eos_token", "")) if (id := to_id(token)) is not None]
        if not ends:
            raise UserError(
                f"the vocabulary has no token to end documents with: neither {END_OF_TEXT} nor an eos_token named in "
                "tokenizer_config.json; use GPT-2's vocabulary"
            )
        # as in transformers, tokens named in tokenizer_config.json are special; they keep the flags of tokenizer.json
        added = {token.content: token for token in self._tokenizer.get_added_tokens_decoder().values()}
        known = [token for token in special.values() if to_id(token) is not None]
        self._tokenizer.add_special_tokens([added.get(token, AddedToken(token, normalized=False)) for token in known])
        self.eos_id, self.end_ids = ends[0], tuple(dict.fromkeys(ends))
        self.vocab_size = self._tokenizer.get_vocab_size()
        unknown = [token for token in special.values() if to_id(token) is None]
        if unknown:
            log.warning(f"ignoring special tokens that are not in the vocabulary: {listed(unknown)}")
        if self._tokenizer.encode("").ids:
            log.warning(
                "tokens that transformers adds before or after each text are not added here; write them into the prompt"
            )

    @property
    def legacy_fingerprint(self) -> str:
        return "bpe-" + hashlib.sha256(_plain(self._json).to_str().encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json in the format of the installed `tokenizers`; older files may differ."""
        return json.loads(self._tokenizer.to_str())

    def _vocabulary(self) -> tuple[list[str], Sequence[Sequence[str | float]]]:
        model = self.to_json()["model"]
        pieces = [self._tokenizer.id_to_token(id) or "" for id in range(self.vocab_size)]
        scored = model["vocab"] if isinstance(model["vocab"], list) else []
        return pieces, model.get("merges") or scored

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = True) -> list[list[int]]:
        tokenizer = self._tokenizer if special_tokens else self._text_only
        return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def _text_only(self) -> "FastTokenizer":
        """The same tokenizer, but encoding special tokens as plain text.

        Not every file marks <|endoftext|> as special, so it is marked here.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as FastTokenizer

        tokenizer = FastTokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int:
        id = self.eos_id if token == END_OF_TEXT else self._tokenizer.token_to_id(token)
        if id is None:
            raise UserError(f"the tokenizer has no special token {token}")
        return id

    @property
    def special_tokens(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    def with_special_tokens(self, tokens: Sequence[str]) -> "BpeTokenizer":
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as FastTokenizer

        extended = FastTokenizer.from_str(self._json)
        extended.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
        # files of slow tokenizers would lack them
        metadata = {name: content for name, content in self.metadata.items() if name not in VOCABULARY}
        return BpeTokenizer(extended.to_str(), metadata=metadata)

    def is_text_token(self, id: int) -> bool:
        is_special = id in self.end_ids or id in self._tokenizer.get_added_tokens_decoder()
        return id < self.vocab_size and not is_special

    def files(self) -> dict[str, bytes]:
        return {**self.metadata, "tokenizer.json": self._json.encode()}


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model. With models from train_tokenizer.py, any text round-trips exactly."""

    # sentencepiece represents a space as U+2581, so a literal U+2581 is encoded as byte pieces if the model has them.
    SPACE = "\u2581"

    def __init__(self, model: bytes, metadata: Mapping[str, bytes] = {}):
        from sentencepiece import SentencePieceProcessor

        self._model, self.metadata = model, metadata
        self._processor = SentencePieceProcessor(model_proto=model)
        self.eos_id = self._processor.eos_id()
        self.vocab_size = self._processor.vocab_size()
        end = self._processor.piece_to_id(special_tokens(metadata).get("eos_token", END_OF_TEXT))
        ends = [id for id in (self.eos_id, end) if id >= 0 and id != self._processor.unk_id()]
        self.end_ids = tuple(dict.fromkeys(ends))
        first_byte = self._processor.piece_to_id("<0x00>")
        self._has_bytes = self._processor.is_byte(first_byte)
        self._space_ids = [first_byte + byte for byte in self.SPACE.encode()]

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = True) -> list[list[int]]:
        """See the base class; a sentencepiece model does not recognize special tokens in text."""
        encoded = self._fast(texts)
        if self._has_bytes:
            encoded = [self._encode(text) if self.SPACE in text else ids for text, ids in zip(texts, encoded)]
        return encoded

    def _fast(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)  # prepare's workers use the other cores

    def _encode(self, text: str) -> list[int]:
        first, *others = self._fast(text.split(self.SPACE))
        return first + [id for ids in others for id in (*self._space_ids, *ids)]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(id) for id in ids])

    def _vocabulary(self) -> tuple[list[str], Sequence[Sequence[str | float]]]:
        return self.pieces, self.merges or [(piece.piece, piece.score) for piece in self.proto.pieces]

    @property
    def legacy_fingerprint(self) -> str:
        return "sentencepiece-" + hashlib.sha256(self._model).hexdigest()[:16]

    @cached_property
    def proto(self) -> Any:
        """The model in sentencepiece's protobuf format."""
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self._model)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def pieces(self) -> list[str]:
        return [piece.piece for piece in self.proto.pieces]

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The merges of a BPE model; empty for a unigram model.

        The model file does not list merges. They are all the splits of a piece into two pieces, in descending order of
        the whole piece's score.
        """
        if self.proto.trainer_spec.model_type != self.proto.trainer_spec.BPE:
            return []
        ids = {piece: id for id, piece in enumerate(self.pieces)}
        merges: list[tuple[float, int, int, tuple[str, str]]] = []
        for piece in (piece for piece in self.proto.pieces if piece.type == piece.NORMAL):
            for left, right in ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece))):
                if left in ids and right in ids:
                    merges.append((-piece.score, ids[left], ids[right], (left, right)))
        return [pair for *_, pair in sorted(merges)]

    def id_of(self, token: str) -> int:
        id = self.eos_id if token == END_OF_TEXT else self._processor.piece_to_id(token)
        require(id != self._processor.unk_id(), f"the tokenizer has no special token {token}")
        return id

    @property
    def special_tokens(self) -> list[str]:
        return [piece.piece for piece in self.proto.pieces if piece.type == piece.CONTROL]

    def with_special_tokens(self, tokens: Sequence[str]) -> "SentencePieceTokenizer":
        proto = type(self.proto).FromString(self._model)
        for token in tokens:
            if token not in self.pieces:
                proto.pieces.add(piece=token, score=0.0, type=proto.SentencePiece.CONTROL)
        return SentencePieceTokenizer(proto.SerializeToString(), self.metadata)

    def is_text_token(self, id: int) -> bool:
        return id < self.vocab_size and not self._processor.is_control(id)

    def files(self) -> dict[str, bytes]:
        return {**self.metadata, "tokenizer.model": self._model}


def truncate(completion: str, truncate_before: Sequence[str]) -> str:
    """Truncate a completion as the authors' sample.py does: before the second `print` or second `def` at the start of
    a line, then before the earliest match of any pattern.

    Args:
        completion: the text.
        truncate_before: regular expressions, matched with MULTILINE; sample.py uses `TRUNCATE_BEFORE`.

    Raises:
        UserError: if a pattern is not a valid regular expression.
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
        source: a sentencepiece `.model` file, a `tokenizer.json`, a folder that contains one of these or `vocab.json`
            and `merges.txt`, or a hub id such as "Salesforce/codegen-350M-mono", optionally with "@REVISION". Folders
            may be on gs:// or s3://.
        whitespace_tokens: add the 38 whitespace tokens of Multi and Mono to a GPT-2 vocabulary that lacks them.

    Raises:
        UserError: if the tokenizer does not exist or its file is damaged.
    """
    path = local_copy(source)
    if not path.exists():
        path = hub_files(str(source), [*FILES, *NAMES, NAMED_TEMPLATES], needs=[FILES])
    metadata = {}
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        found = next((path / name for name in FILES if (path / name).exists()), None)
        if found is None:
            content = f"it {contains(names)}{instead(path, has_tokenizer)}"
            raise UserError(f"{source}: has no tokenizer.json, tokenizer.model or vocab.json; {content}")
        metadata, path = read_metadata(path), found
    for file in (path, *(path.parent / name for name in COMPANIONS if path.name == "vocab.json")):
        if file.exists():
            reject_placeholder(file)
    if path.name == "vocab.json" and not (path.parent / COMPANIONS[0]).exists():
        raise UserError(f"{source}: has vocab.json but not {COMPANIONS[0]}; add the missing file")
    try:
        if path.name == "vocab.json":
            return BpeTokenizer(_gpt2_json(path.parent, metadata), whitespace_tokens, metadata)
        if path.suffix == ".json":
            return BpeTokenizer(path.read_text(encoding="utf-8"), whitespace_tokens, metadata)
        if whitespace_tokens:
            raise UserError(
                f"{source}: whitespace tokens can only be added to GPT-2's vocabulary, not to a sentencepiece model"
            )
        return SentencePieceTokenizer(path.read_bytes(), metadata)
    except UserError as error:
        raise error if str(source) in str(error) else UserError(f"{source}: {error}") from error
    except Exception as error:  # for a damaged file, the two libraries raise bare Exception and RuntimeError
        raise UserError(f"{source}: not a readable tokenizer ({error}); download it again") from error


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def _plain(tokenizer_json: str) -> "FastTokenizer":
    """Load a tokenizer with padding, truncation and BPE dropout turned off, since they change the ids of a text."""
    from tokenizers import Tokenizer as FastTokenizer

    tokenizer = FastTokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def _gpt2_json(folder: Path, metadata: Mapping[str, bytes]) -> str:
    """Build a tokenizer.json from vocab.json and merges.txt; added tokens come from added_tokens.json if it exists,
    else from tokenizer_config.json."""
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    tokenizer = FastTokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    path = folder / "added_tokens.json"
    if path.exists():
        added = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(added, dict), f"{path}: must map tokens to ids, got a {type(added).__name__}")
    else:
        path, decoder = folder / CONFIG, parse(metadata, CONFIG).get("added_tokens_decoder", {})
        added = {token["content"]: int(id) for id, token in decoder.items()}
    ids = {token: id for token, id in added.items() if tokenizer.token_to_id(token) is None}
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sorted(ids, key=ids.__getitem__)])
    for token, id in ids.items():
        if tokenizer.token_to_id(token) != id:
            raise UserError(f"{path}: token {token!r} has the id {id}, which leaves a gap in the vocabulary")
    return tokenizer.to_str()
