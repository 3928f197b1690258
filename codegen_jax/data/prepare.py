"""Raw shards to token files, as a datatrove pipeline: read, tokenize, append eos, shuffle documents, write.

One task a shard, so the files do not depend on the number of workers, and a run that was stopped goes on with the
shards that are missing.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile
from datatrove.utils.batching import batched
from datatrove.utils.logging import logger
from datatrove.utils.stats import MetricStatsDict

from codegen_jax.data.shards import list_shards, read_texts
from codegen_jax.data.tokenizer import Tokenizer, load_tokenizer
from codegen_jax.data.tokens import MANIFEST, Manifest
from codegen_jax.errors import UserError, require, require_seed

logger.disable("datatrove")  # it narrates every task on stderr, here and in each worker that imports this file

SKIPPED = "skipped: "  # prefix of the statistics that count lines left out


class ShardReader(PipelineStep):
    """Task i reads shard i; documents out, with the UTF-8 length as metadata."""

    type, name = "READER", "Shards"

    def __init__(self, shards: list[str]):
        super().__init__()
        self.shards = shards

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        skipped: Counter[str] = Counter()
        for number, text in enumerate(read_texts(self.shards[rank], skipped)):
            self.stat_update("documents")
            self.stat_update("text_bytes", value=len(text.encode()))
            yield Document(text=text, id=f"{rank}/{number}")
        for reason, lines in skipped.items():
            self.stat_update(SKIPPED + reason, value=lines)


class TokenWriter(DocumentTokenizer):
    """datatrove's tokenizer step with our tokenizers; each document ends with eos, documents are shuffled in a file."""

    def __init__(self, output: str, tokenizer: str, seed: int):
        super().__init__(output, tokenizer, seed=seed, batch_size=1000, save_final_metadata=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:  # pyright: ignore[reportIncompatibleVariableOverride]
        return load_tokenizer(str(self.tokenizer_name_or_path))

    @cached_property
    def token_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return token_bytes(self.tokenizer)

    def write_unshuffled(self, data: Any, filename: str) -> TokenizedFile:
        file = TokenizedFile(self.output_folder, filename, token_size=self.token_size)
        for batch in batched(data, self.batch_size):
            for ids in self.tokenizer.encode_batch([document.text for document in batch]):
                file.write([*ids, self.tokenizer.eos_id], None)
        file.close()
        return file


def token_bytes(tokenizer: Tokenizer) -> int:
    """Bytes of a token on disk."""
    return 2 if tokenizer.vocab_size <= 65536 else 4


def prepare(inputs: list[str], output: str, tokenizer: Tokenizer, *, workers: int = 1, seed: int = 0) -> Manifest:
    """Tokenize shards into a folder of token files.

    Args:
        inputs: as in `list_shards`.
        output: a new or empty folder, or one whose preparation with the same arguments was stopped: it goes on.
        tokenizer: is copied into the folder.
        workers: processes.
        seed: of the document shuffle.

    Raises:
        UserError: for inputs without shards or documents, an unreadable shard, or a folder that holds something else.
    """
    require(workers > 0, f"--workers: {workers} must be positive")
    require_seed("--seed", seed)
    shards, folder = list_shards(inputs), Path(output)
    logs = folder / "logs"
    _claim(folder, {"tokenizer": tokenizer.fingerprint, "sources": shards, "seed": seed})
    tokenizer.save(folder / "tokenizer")
    pipeline = [ShardReader(shards), TokenWriter(output, str(folder / "tokenizer"), seed)]
    executor = LocalPipelineExecutor(
        pipeline, tasks=len(shards), workers=min(workers, len(shards)), logging_dir=str(logs)
    )
    executor.run()

    statistics: Counter[str] = Counter()
    for task in sorted((logs / "stats").glob("*.json")):
        for name, stat in MetricStatsDict.from_dict(json.loads(task.read_text())[0]["stats"]).items():
            statistics[name] += stat.total
    size = token_bytes(tokenizer)
    files = {path.name: path.stat().st_size // size for path in sorted(folder.glob("*.ds")) if path.stat().st_size}
    if not files:
        shutil.rmtree(folder)
        raise UserError(f"{' '.join(inputs)}: no document with text in {len(shards)} shard(s)")
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        token_bytes=size,
        documents=statistics["documents"],
        tokens=sum(files.values()),
        text_bytes=statistics["text_bytes"],
        skipped={name.removeprefix(SKIPPED): n for name, n in statistics.items() if name.startswith(SKIPPED)},
        files=files,
        sources=shards,
        seed=seed,
    )
    manifest.save(folder)
    return manifest


def _claim(folder: Path, arguments: dict[str, Any]) -> None:
    """Take a folder for a preparation with these arguments; refuse one that holds anything else."""
    record = folder / "logs" / "arguments.json"
    if (folder / MANIFEST).exists():
        raise UserError(f"{folder}: already holds token files; remove it or choose another --output")
    if record.exists():
        if json.loads(record.read_text()) != arguments:
            raise UserError(f"{folder}: an unfinished preparation of other inputs, tokenizer or seed; remove it")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not empty and not token files; choose another --output")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(arguments))
