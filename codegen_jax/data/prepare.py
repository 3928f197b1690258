"""Raw shards to token files, as passes of datatrove pipelines: read, filter, deduplicate, tokenize, shuffle, write.

One task a shard, so the files do not depend on the number of workers, and a preparation that was stopped goes on with
the tasks that are missing. Deduplication must have seen all documents before it drops one, so each pass reads them
anew, which costs little beside tokenizing.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from codegen_jax.data.dedup import DropDuplicates, FindDuplicates, WriteDigests
from codegen_jax.data.executors import EXECUTORS, Pass, run_passes
from codegen_jax.data.filters import CODE_EXTENSIONS, CodeFilter, LineFilter
from codegen_jax.data.ngrams import decontamination, near_dedup
from codegen_jax.data.prepare_report import DROPPED, Tally
from codegen_jax.data.shards import list_shards, read_documents
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokens import MANIFEST, Manifest
from codegen_jax.data.writer import ManifestWriter, NoDocuments, TokenWriter
from codegen_jax.errors import UserError, require, require_seed
from codegen_jax.storage import require_local

FILTERS = ("none", "code")
DEDUP = ("none", "exact", "minhash")


class ShardReader(PipelineStep):
    """Task i reads shard i; out come documents with source, path and UTF-8 length as metadata."""

    type, name = "READER", "shards"

    def __init__(self, shards: list[str]):
        super().__init__()
        self.shards = shards

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        skipped: Counter[str] = Counter()
        for number, (text, source, path) in enumerate(read_documents(self.shards[rank], skipped)):
            metadata = {"source": source, "path": path, "bytes": len(text.encode())}
            yield Document(text=text, id=f"{rank}/{number}", metadata=metadata)
        for reason, lines in skipped.items():
            self.stat_update(DROPPED + reason, value=lines)


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: Tokenizer,
    *,
    filters: str = "none",
    extensions: Sequence[str] = CODE_EXTENSIONS,
    dedup: str = "none",
    decontaminate: Sequence[str] = (),
    executor: str = "local",
    executor_options: dict[str, Any] | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Manifest | None:
    """Tokenize shards into a folder of token files; what became of the documents is in its report.json.

    Args:
        inputs: as in `list_shards`.
        output: a new or empty folder, or one whose preparation with the same arguments was stopped: it goes on.
        tokenizer: is copied into the folder.
        filters: "code" applies the paper's rules for code.
        extensions: of file names that "code" keeps.
        dedup: "exact" drops repeated texts over all shards; "minhash" near-duplicates of what that leaves, too.
        decontaminate: JSON lines files of benchmarks; documents that share 12 words in a row with them are dropped.
        executor: "local", "slurm" or "ray".
        executor_options: further arguments of datatrove's executor.
        workers: tasks at a time; None: 1 on this machine, no limit elsewhere.
        seed: of the document shuffle.

    Returns:
        The manifest; None if a Slurm queue has the work.

    Raises:
        UserError: for inputs without shards or documents, an unreadable shard, or a folder that holds something else.
    """
    for name, value, valid in (
        ("filters", filters, FILTERS),
        ("dedup", dedup, DEDUP),
        ("executor", executor, EXECUTORS),
    ):
        require(value in valid, f"{name}: {value} must be one of {', '.join(valid)}")
    require(workers is None or workers > 0, f"workers: {workers} must be positive")
    require_seed("seed", seed)
    require_local("output", output)
    shards, folder = list_shards(inputs), Path(output).absolute()
    logs, work = folder / "logs", folder / "work"
    rules = {
        "filters": [filters, *extensions] if filters == "code" else filters,
        "dedup": dedup,
        "decontaminate": list(decontaminate),
    }
    _claim(folder, {"tokenizer": tokenizer.fingerprint, "sources": shards, "seed": seed, **rules})
    tokenizer.save(folder / "tokenizer")

    documents: list[PipelineStep] = [ShardReader(shards), LineFilter(), Tally("read")]
    passes = []
    if filters == "code":
        documents += [CodeFilter(tuple(extensions)), Tally("code rules")]
    if dedup != "none":
        passes.append(Pass("digests", [*documents, WriteDigests(work)], len(shards)))
        passes.append(Pass("duplicates", [FindDuplicates(work)], len(shards)))
        documents += [DropDuplicates(work, shards), Tally("dedup")]
    if dedup == "minhash":
        before, drop = near_dedup(work, documents, len(shards))
        passes += before
        documents += [drop, Tally("near dedup")]
    if decontaminate:
        documents += [decontamination(work, decontaminate), Tally("decontamination")]
    # a core a task, but for a single task at a time: then the tokenizer's own threads use the others
    writer = TokenWriter(str(folder), seed, threads=executor == "local" and (workers or 1) == 1)
    statistics = logs / f"{len(passes)}_tokens" / "stats"
    passes.append(Pass("tokens", [*documents, writer], len(shards)))
    passes.append(Pass("manifest", [ManifestWriter(folder, work, statistics, shards, seed)], 1))
    try:
        done = run_passes(passes, str(logs), executor, workers, executor_options or {})
    except NoDocuments:
        shutil.rmtree(folder)
        raise
    return Manifest.load(folder) if done else None


def _claim(folder: Path, arguments: dict[str, Any]) -> None:
    """Take a folder for a preparation with these arguments; refuse one that holds anything else."""
    record = folder / "logs" / "arguments.json"
    if (folder / MANIFEST).exists():
        raise UserError(f"output: {folder}: already holds token files; remove it or choose another folder")
    if record.exists():
        held = json.loads(record.read_text())
        for name, value in arguments.items():
            if held.get(name) != value:
                raise UserError(f"output: {folder}: an unfinished preparation with other {name}; remove it")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output: {folder}: not empty and not token files; choose another folder")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(arguments))
