"""Write documents to token files: tokenize, append eos, shuffle, and write the manifest once all files are complete."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile

from codegen_jax.data.cut import Cutter
from codegen_jax.data.inputs import Inputs
from codegen_jax.data.parts import Part, encode_parts
from codegen_jax.data.prepare_report import REPORT, make_report, total
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.data.tokens import INDEX, LOSS, Manifest, checksum
from codegen_jax.errors import UserError

BATCH = 1_000_000  # characters encoded per call to the tokenizer


class TokenWriter(DocumentTokenizer):
    """datatrove's tokenizer step with our tokenizers; each document ends with eos, and each file is shuffled.

    Args:
        output: folder of the token files, which contains the tokenizer.
        seed: seed of the shuffle.
        special_tokens: whether to encode special tokens in documents as such, rather than as text.
        threads: whether the tokenizer may use all cores; False if tasks already run in parallel.
    """

    def __init__(self, output: str, seed: int, special_tokens: bool, threads: bool):
        super().__init__(output, f"{output}/tokenizer", save_final_metadata=False)
        self.seed, self.special_tokens, self.threads = seed, special_tokens, threads

    @cached_property
    def tokenizer(self) -> Tokenizer:  # pyright: ignore[reportIncompatibleVariableOverride]
        return load_tokenizer(str(self.tokenizer_name_or_path))

    @cached_property
    def token_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return token_bytes(self.tokenizer)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        self.rand = np.random.default_rng([self.seed, rank])  # independent of earlier shuffles in this process
        os.environ["TOKENIZERS_PARALLELISM"] = str(self.threads).lower()
        super().run(data, rank, world_size)

    def write_unshuffled(self, data: Any, filename: str) -> TokenizedFile:
        file = TokenizedFile(self.output_folder, filename, token_size=self.token_size)
        tokens: Counter[str] = Counter()
        for batch in _batches(data, Cutter(self.tokenizer)):
            encoded = encode_parts(self.tokenizer, [part for _, part, _ in batch], self.special_tokens)
            for (source, _, is_last), ids in zip(batch, encoded, strict=True):
                if is_last:
                    ids = [*ids, self.tokenizer.eos_id]
                tokens[source] += len(ids)
                # None: a document ends after these tokens
                file.write_bytes(np.array(ids, f"<u{self.token_size}").tobytes(), doc_ends=None if is_last else [])
        file.close()
        for source, count in tokens.items():
            self.stat_update(f"tokens {source}", value=count)
        return file


def _batches(documents: Iterator[Document], cutter: Cutter) -> Iterator[list[tuple[str, Part, bool]]]:
    """Batches of (source, part or chunk of one, whether it is the document's last), about `BATCH` characters each."""
    batch, size = [], 0
    for document in documents:
        parts = document.metadata["parts"]
        for number, part in enumerate(parts, 1):
            rest = len(part.text)
            for chunk in [part.text] if part.special else cutter.chunks(part.text):
                rest -= len(chunk)
                is_last = rest == 0 and number == len(parts)
                batch.append((document.metadata["source"], part._replace(text=chunk), is_last))
                size += len(chunk)
                if size >= BATCH:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


def token_bytes(tokenizer: Tokenizer) -> int:
    """Bytes per token on disk."""
    return 2 if tokenizer.vocab_size <= 65536 else 4


class NoDocuments(UserError):
    """The preparation dropped all documents, or found none."""


def _explain_no_documents(shards: list[str], report: dict[str, Any]) -> str:
    reasons = [f"{reason} ({count:,})" for stage in report["stages"] for reason, count in stage["dropped"].items()]
    dropped = f"dropped: {', '.join(reasons)}" if reasons else "the shards are empty"
    return f"no documents left from {len(shards)} shard(s), {' '.join(shards)[:200]}; {dropped}"


class ManifestWriter(PipelineStep):
    """The last pass, a single task: write report.json, then manifest.json, which marks the folder as complete.

    Raises:
        NoDocuments: if no documents are left.
    """

    type, name = "WRITER", "manifest"

    def __init__(self, output: Path, work: Path, statistics: Path, inputs: Inputs, seed: int, windows: Any):
        super().__init__()
        self.output, self.work, self.statistics, self.inputs, self.seed = output, work, statistics, inputs, seed
        self.windows = windows

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        tokenizer = load_tokenizer(self.output / "tokenizer")
        size = token_bytes(tokenizer)
        files = [file for file in sorted(self.output.glob("*.ds")) if file.stat().st_size]
        others = [f"{file}{suffix}" for file in files for suffix in (LOSS, INDEX)] if self.windows != "folder" else []
        masks = [name for name in others if name.endswith(LOSS)]
        report = make_report(self.statistics, self.work, self.inputs)
        if not files:
            raise NoDocuments(_explain_no_documents(self.inputs.shards, report))
        (self.output / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        Manifest(
            tokenizer=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            token_bytes=size,
            documents=total(report["stages"][-1], "documents"),
            tokens=sum(file.stat().st_size for file in files) // size,
            text_bytes=total(report["stages"][-1], "bytes"),
            files={file.name: file.stat().st_size // size for file in files},
            checksums={file.name: checksum(file) for file in [*files, *map(Path, others)]},
            sources=self.inputs.shards,
            seed=self.seed,
            windows=self.windows,
            trained_tokens=sum(int(np.memmap(mask, bool, mode="r").sum()) for mask in masks) if masks else None,
        ).save(self.output)
        shutil.rmtree(self.work, ignore_errors=True)
