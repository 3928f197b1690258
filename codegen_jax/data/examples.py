"""Documents that are trained in rows of their own or packed with others: encoded, cut to the context, with a mask."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from codegen_jax.data.formats import Format, Text
from codegen_jax.data.parts import END, Part, encode_parts
from codegen_jax.data.prepare_report import CUT, DROPPED, WHOLE
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.data.writer import BATCH, TokenWriter

MAX_LISTED = 1000  # examples listed in report.json, per shard


class EncodeExamples(PipelineStep):
    """Encodes the parts of documents, appends eos, and puts ids and mask into their metadata, as "ids" and "trained".

    An example of more than `sequence_length` + 1 tokens loses its first tokens, which are those of the prompt, or is
    dropped (see `fit`). Long documents of the format "text" become consecutive examples instead.

    Args:
        tokenizer: the tokenizer's folder.
        work: folder for lists of examples that are too long.
        form: the format of the data.
        sequence_length: tokens trained on per row.
        loss: "completions", or "all" for prompts, too.
        too_long: "cut" or "drop".
        special_tokens: whether to encode special tokens in text as such.
    """

    type, name = "FORMAT", "examples"

    def __init__(
        self,
        tokenizer: Path,
        work: Path,
        form: Format,
        sequence_length: int,
        loss: str,
        too_long: str,
        special_tokens: bool,
    ):
        super().__init__()
        self.folder, self.work, self.form, self.sequence_length = tokenizer, work, form, sequence_length
        self.loss, self.too_long, self.special_tokens = loss, too_long, special_tokens

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        listed: list[dict[str, Any]] = []
        for batch in _batches(data):
            parts = [_with_end(document.metadata["parts"]) for document in batch]
            encoded = iter(encode_parts(self.tokenizer, [part for each in parts for part in each], self.special_tokens))
            for document, each in zip(batch, parts, strict=True):
                pieces = [next(encoded) for _ in each]
                ids = np.array([id for piece in pieces for id in piece])
                trained = np.repeat([part.trained for part in each], [len(piece) for piece in pieces])
                if len(ids) <= self.sequence_length + 1:
                    yield self._example(document, ids, trained)
                elif isinstance(self.form, Text):
                    yield from self._pieces(document, ids, each)
                elif (fitting := self._fit(document, ids, trained, listed)) is not None:
                    yield self._example(document, *fitting)
        (self.work / "long").mkdir(parents=True, exist_ok=True)
        (self.work / f"long/{rank:05d}.json").write_text(json.dumps(listed))

    def _pieces(self, document: Document, ids: np.ndarray, parts: list[Part]) -> Iterator[Document]:
        """A long text as consecutive examples; rearranged ones are taken as they were before."""
        if len(parts) > 2:
            self.stat_update(WHOLE, value=1)
            [text_ids] = self.tokenizer.encode_batch([document.text], self.special_tokens)
            ids = np.array([*text_ids, self.tokenizer.eos_id])
        for start in range(0, len(ids) - 1, self.sequence_length):
            piece = ids[start : start + self.sequence_length + 1]
            yield self._example(document, piece, np.ones(len(piece), bool))

    def _fit(
        self, document: Document, ids: np.ndarray, trained: np.ndarray, listed: list[dict[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """`fit` for an example that is too long, which is counted and listed."""
        length = self.sequence_length + 1
        fitting = fit(ids, trained, length) if self.too_long == "cut" else None
        where = {"shard": document.metadata["shard"], "line": document.metadata["line"]}
        if len(listed) < MAX_LISTED:
            listed.append({**where, "tokens": len(ids), "cut": fitting is not None})
        what = "completion" if self.too_long == "cut" else "example"
        self.stat_update(CUT if fitting is not None else f"{DROPPED}{what} longer than the context", value=1)
        return fitting

    def _example(self, document: Document, ids: np.ndarray, trained: np.ndarray) -> Document:
        trained = trained | (self.loss == "all")
        trained[0] = False  # nothing comes before it
        text = self.tokenizer.decode(ids[trained & (ids != self.tokenizer.eos_id)].tolist())
        metadata = {**document.metadata, "ids": ids, "trained": trained, "bytes": len(text.encode())}
        return Document(text=document.text, id=document.id, metadata=metadata)


class ExampleWriter(TokenWriter):
    """Writes encoded examples and their masks, shuffled; see `EncodeExamples`."""

    def write_unshuffled(self, data: Any, filename: str) -> TokenizedFile:
        file = TokenizedFile(self.output_folder, filename, save_loss_metadata=True, token_size=self.token_size)
        for document in data:
            ids, source = document.metadata["ids"], document.metadata["source"]
            file.write_bytes(ids.astype(f"<u{self.token_size}").tobytes())
            file.write_loss_bytes(document.metadata["trained"].tobytes())
            self.stat_update(f"tokens {source}", value=len(ids))
        file.close()
        return file


def fit(ids: np.ndarray, trained: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The last `length` tokens of an example, and which of them are trained.

    What is lost is the prompt's beginning, or a conversation's. A completion that loses its beginning is not trained.
    The last completion must be kept whole, after at least one other token; otherwise the result is None.

    >>> ids, trained = fit(np.arange(6), np.array([False, False, True, False, True, True]), 4)
    >>> ids.tolist(), trained.tolist()
    ([2, 3, 4, 5], [False, False, True, True])
    """
    ids, trained = ids[-length:], trained[-length:].copy()
    first_untrained = int(np.argmin(trained))
    if trained[first_untrained]:  # all are trained
        return None
    trained[:first_untrained] = False
    return (ids, trained) if trained.any() else None


def _with_end(parts: list[Part]) -> list[Part]:
    return parts if parts[-1].special else [*parts, END]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
