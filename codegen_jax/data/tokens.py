"""Token files in datatrove's format, with one manifest: open, validate, split into windows.

A folder contains `*.ds` files (flat uint16, or uint32 for vocabularies of more than 65,536 ids; documents end with
eos), `*.ds.index` files (document ends as uint64), for examples `*.ds.loss` files (whether each token is trained, one
byte each; see packing.py), the tokenizer under `tokenizer/`, `report.json` and `manifest.json`.
The manifest is written last; a folder without it is unfinished.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import fsspec
import numpy as np
from etils import epath

from codegen_jax.data.rows import make_row
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.storage import file_size, is_remote, open_path

MANIFEST = "manifest.json"
LOSS, INDEX = ".loss", ".index"  # suffixes of the files with a token file's mask and documents


@dataclass(frozen=True)
class Manifest:
    """Description of the token files in a folder.

    Attributes:
        tokenizer: fingerprint of the tokenizer, possibly in the legacy format; see `Tokenizer.has_fingerprint`.
        vocab_size: number of ids in the tokenizer.
        eos_id: the id at the end of each document.
        token_bytes: 2 for uint16, 4 for uint32.
        documents: number of documents, or examples, in all files.
        tokens: number of tokens in all files, including eos.
        text_bytes: UTF-8 bytes of the text that is trained on, for bits per byte.
        files: number of tokens by file name, in reading order.
        checksums: checksum by file name; see `checksum`.
        sources: the shards that were read.
        seed: seed of the document shuffle.
        windows: how tokens are divided into rows: "folder" (windows, which may cross file boundaries), "file" (windows
            of each file separately, as in folders written before this field existed), "example" (one example per row)
            or "packed" (several examples per row).
        trained_tokens: number of tokens that are trained; null for all.
    """

    tokenizer: str
    vocab_size: int
    eos_id: int
    token_bytes: int
    documents: int
    tokens: int
    text_bytes: int
    files: dict[str, int]
    checksums: dict[str, str]
    sources: list[str]
    seed: int
    windows: Literal["folder", "file", "example", "packed"] = "file"
    trained_tokens: int | None = None

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss on these tokens from nats per token to bits per byte, comparable across tokenizers."""
        tokens = self.tokens if self.trained_tokens is None else self.trained_tokens
        return loss / math.log(2) * tokens / self.text_bytes

    @property
    def has_examples(self) -> bool:
        """Whether the files have masks, and rows hold whole examples."""
        return self.windows in ("example", "packed")

    def save(self, folder: epath.PathLike) -> None:
        (epath.Path(folder) / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: epath.PathLike) -> "Manifest":
        """Load the manifest of a folder.

        Raises:
            UserError: if the folder is missing, empty or unfinished, or the manifest is damaged.
        """
        folder = open_path(folder)
        path = folder / MANIFEST
        if not path.exists():
            state = "unfinished" if folder.is_dir() and any(folder.iterdir()) else "missing or empty"
            make = f"codegen-jax prepare INPUT --output {folder} --tokenizer T"
            about = "INPUT: .jsonl or .parquet with text; T: a folder from codegen-jax tokenizer train, or a hub id"
            raise UserError(f"{folder}: {state} token files (no {MANIFEST}); run {make} ({about})")
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); run codegen-jax prepare again") from error

    @property
    def identity(self) -> dict[str, Any]:
        """What a run records about its token files; equal for identical files in different locations."""
        content = hashlib.sha256(json.dumps([self.files, self.checksums]).encode()).hexdigest()[:16]
        return {"tokenizer": self.tokenizer, "tokens": self.tokens, "content": content, "windows": self.windows}


def checksum(file: epath.PathLike) -> str:
    """A hash of the first and last 64 KiB of a file: enough to tell token files apart, and fast for any file size."""
    file = epath.Path(file)
    with file.open("rb") as content:
        ends = content.read(1 << 16)
        content.seek(max(0, file_size(file) - (1 << 16)))
        return hashlib.sha256(ends + content.read()).hexdigest()[:16]


class TokenFiles:
    """The token files of a folder: memory-mapped, or read by byte ranges if they are remote.

    Attributes:
        arrays: the tokens of each file.
        masks: whether each of these tokens is trained; empty unless the files hold examples.

    Raises:
        UserError: if the folder is missing, empty or unfinished, or a file does not match the manifest.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = open_path(folder)
        self.manifest = Manifest.load(self.folder)
        dtype = np.dtype({2: "<u2", 4: "<u4"}[self.manifest.token_bytes])
        files = self.manifest.files.items()
        self.arrays = [self._open(name, tokens, dtype) for name, tokens in files]
        masked = files if self.manifest.has_examples else ()
        self.masks = [self._open(name + LOSS, tokens, np.dtype(bool)) for name, tokens in masked]
        for name, _ in masked:
            self._check(name + INDEX)

    def _open(self, name: str, tokens: int, dtype: np.dtype) -> "np.ndarray | RemoteArray":
        path = self.folder / name
        expected = tokens * dtype.itemsize
        if not path.exists() or file_size(path) != expected:
            size = f"{file_size(path)} bytes" if path.exists() else "missing"
            raise UserError(
                f"{path}: {size}, but {expected} bytes according to {MANIFEST}; run codegen-jax prepare again"
            )
        self._check(name)
        if is_remote(path) and self.manifest.has_examples:  # a row consists of many small pieces
            return np.frombuffer(path.read_bytes(), dtype)
        return RemoteArray(path, dtype, tokens) if is_remote(path) else np.memmap(path, dtype, mode="r")

    def _check(self, name: str) -> None:
        """Raise `UserError` if a file is missing or does not match its checksum."""
        path = self.folder / name
        if not path.exists() or checksum(path) != self.manifest.checksums.get(name):
            what = "does not match its checksum in" if path.exists() else "missing, but listed in"
            raise UserError(f"{path}: {what} {MANIFEST}; run codegen-jax prepare again")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that produced the files.

        Raises:
            UserError: if the copy in the folder does not match the manifest.
        """
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        if not tokenizer.has_fingerprint(self.manifest.tokenizer):
            raise UserError(
                f"{self.folder}: made with tokenizer {self.manifest.tokenizer}, but its tokenizer/ contains "
                f"{tokenizer.fingerprint}; run codegen-jax prepare again"
            )
        return tokenizer

    def made_with(self, tokenizer: Tokenizer) -> bool:
        """Whether a tokenizer encodes like the one that produced the files."""
        # load the copy in the folder only if the fingerprints differ, as they may for folders from older versions
        if tokenizer.has_fingerprint(self.manifest.tokenizer):
            return True
        return self.tokenizer().fingerprint == tokenizer.fingerprint

    def name(self, file: int) -> str:
        return list(self.manifest.files)[file]

    def documents(self, file: int, start: int, stop: int) -> range:
        """Indices of the documents that contain tokens start .. stop - 1 of a file."""
        first, last = np.searchsorted(self.ends(file), [start, stop - 1], side="right")
        return range(int(first), int(last) + 1)

    def ends(self, file: int) -> np.ndarray:
        """The position after each document of a file, uint64."""
        path = self.folder / f"{self.name(file)}{INDEX}"
        return np.frombuffer(path.read_bytes(), "<u8") if is_remote(path) else np.memmap(path, "<u8", mode="r")


class RemoteArray:
    """The tokens of a remote file; each slice is one byte-range request."""

    def __init__(self, path: epath.Path, dtype: np.dtype, tokens: int):
        self.files, self.path = fsspec.url_to_fs(str(path))
        self.dtype, self.tokens = dtype, tokens

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop = index.start * self.dtype.itemsize, index.stop * self.dtype.itemsize
        return np.frombuffer(self.files.cat_file(self.path, start=start, end=stop), self.dtype)


class Span(NamedTuple):
    """Tokens start .. stop - 1 of a file."""

    file: int
    start: int
    stop: int


class Windows:
    """Random access to windows of sequence_length + 1 tokens over the concatenated documents of a folder.

    Adjacent windows overlap by one token, so every token except the first is a target exactly once, apart from the
    last `leftover` tokens, which do not fill a window. Under the manifest's old rule, "file", this applies to each file
    separately. With `document_mask`, windows mark where documents start, as in rows.py.

    Attributes:
        leftover: number of tokens at the end (of each file) that are in no window.

    Raises:
        UserError: if there are too few tokens for one window.
    """

    def __init__(self, files: TokenFiles, sequence_length: int, document_mask: bool = False):
        self.sequence_length, self.document_mask = sequence_length, document_mask
        self.files, self.arrays = files, files.arrays
        self.offsets = np.cumsum([0, *map(len, self.arrays)])  # global position of each file's first token
        borders = self.offsets if files.manifest.windows == "file" else self.offsets[[0, -1]]
        counts = np.maximum(np.diff(borders) - 1, 0) // sequence_length
        self.starts, self.ends = borders[:-1], np.cumsum(counts)
        self.leftover = files.manifest.tokens - int((counts * sequence_length + (counts > 0)).sum())
        if not len(self):
            raise UserError(
                f"{files.folder}: has {files.manifest.tokens} tokens, too few for one window of "
                f"data.sequence_length + 1 = {sequence_length + 1}; prepare more text or reduce data.sequence_length"
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Window `index`, int32 [sequence_length + 1], as in rows.py."""
        pieces = [self.arrays[file][start:stop] for file, start, stop in self.spans(index)]
        ids = np.concatenate(pieces).astype(np.int32)
        if not self.document_mask:
            return ids
        starts = np.concatenate([[True], ids[:-1] == self.files.manifest.eos_id])
        return make_row(ids, np.ones_like(starts), starts)

    def spans(self, index: int) -> list[Span]:
        """The location of a window's tokens, in one file or in several consecutive files."""
        span = int(np.searchsorted(self.ends, index, side="right"))
        before = int(self.ends[span - 1]) if span else 0
        start = int(self.starts[span]) + (index - before) * self.sequence_length
        stop = start + self.sequence_length + 1
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
        spans = []
        for file in range(first, last + 1):
            offset, end = int(self.offsets[file]), int(self.offsets[file + 1])
            spans.append(Span(file, max(start, offset) - offset, min(stop, end) - offset))
        return spans
