"""Turn raw shards into token files with datatrove pipelines: read, filter, deduplicate, tokenize, shuffle, write.

There is one task per shard, so the files do not depend on the number of workers, and an interrupted preparation
resumes with the missing tasks. Deduplication must see all documents before it drops any, so each pass rereads the
shards, which is cheap compared with tokenizing.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from codegen_jax.data.dedup import DropDuplicates, FindDuplicates, WriteDigests
from codegen_jax.data.executors import EXECUTORS, Pass, note_progress, run_passes
from codegen_jax.data.filters import CODE_EXTENSIONS, ChunkFilter, CodeFilter
from codegen_jax.data.inputs import list_shards
from codegen_jax.data.ngrams import decontamination, near_dedup
from codegen_jax.data.prepare_report import DROPPED, Tally, record_read
from codegen_jax.data.probe import check_tokenizer
from codegen_jax.data.shards import Skipped, read_documents
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokens import MANIFEST, Manifest
from codegen_jax.data.writer import ManifestWriter, NoDocuments, TokenWriter
from codegen_jax.errors import UserError, require, require_seed
from codegen_jax.storage import require_local

log = logging.getLogger(__name__)

FILTERS = ("none", "code")
DEDUP = ("none", "exact", "minhash")


class ShardReader(PipelineStep):
    """Task i reads shard i and yields documents with source, path and UTF-8 length as metadata.

    Args:
        shards: the shards; "" stands for a shard that was removed and yields no documents.
        work: folder for per-shard records that go into the report.
        text_field: the field that contains the documents.
    """

    type, name = "READER", "shards"

    def __init__(self, shards: list[str], work: Path, text_field: str):
        super().__init__()
        self.shards, self.work, self.text_field = shards, work, text_field

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        shard = self.shards[rank]
        if not shard:
            return
        skipped, count = Skipped(), 0
        progress = lambda fraction: note_progress(rank, fraction)
        for text, source, path in read_documents(shard, skipped, self.text_field, progress):
            metadata = {"source": source, "path": path, "bytes": len(text.encode())}
            yield Document(text=text, id=f"{rank}/{count}", metadata=metadata)
            count += 1
        for reason, lines in skipped.counts.items():
            self.stat_update(DROPPED + reason, value=lines)
        record_read(self.work, rank, shard, count, skipped)


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    special_tokens: bool = False,
    filters: str = "none",
    extensions: Sequence[str] = CODE_EXTENSIONS,
    dedup: str = "none",
    decontaminate: Sequence[str] = (),
    executor: str = "local",
    executor_options: dict[str, Any] | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Manifest | None:
    """Tokenize shards into a folder of token files. Its report.json accounts for every document.

    Args:
        inputs: see `list_shards`.
        output: a new or empty folder, or a folder with an interrupted preparation, which resumes if the arguments are
            the same. Shards not read yet may have been removed in the meantime.
        tokenizer: the tokenizer; it is copied into the folder.
        text_field: the field of each line or row that contains the document.
        special_tokens: whether to encode <|endoftext|> and the like in a document as special tokens rather than text.
        filters: "code" applies the paper's rules for code.
        extensions: file extensions that "code" keeps.
        dedup: "exact" drops repeated texts across all shards; "minhash" also drops near-duplicates among the rest.
        decontaminate: JSON lines files of benchmarks; documents sharing 12 consecutive words with them are dropped.
        executor: "local", "slurm" or "ray".
        executor_options: further arguments for datatrove's executor.
        workers: number of parallel tasks; None means 1 on this machine and no limit elsewhere.
        seed: seed of the document shuffle.

    Returns:
        The manifest, or None if the work was submitted to Slurm.

    Raises:
        UserError: if the inputs have no shards or documents, a shard is unreadable, the tokenizer does not preserve
            code, or the folder contains something else.
    """
    for name, value, valid in (
        ("filters", filters, FILTERS),
        ("dedup", dedup, DEDUP),
        ("executor", executor, EXECUTORS),
    ):
        require(value in valid, f"{name}: must be one of {', '.join(valid)}, got {value}")
    require(workers is None or workers > 0, f"workers: must be positive, got {workers}")
    require_seed("seed", seed)
    require_local("output", output)
    check_tokenizer(tokenizer)
    found, folder = list_shards(inputs), Path(output).absolute()
    logs, work = folder / "logs", folder / "work"
    rules = {
        "filters": [filters, *extensions] if filters == "code" else filters,
        "dedup": dedup,
        "decontaminate": list(decontaminate),
        "text_field": text_field,
        "special_tokens": special_tokens,
    }
    shards = _claim(folder, tokenizer, {"seed": seed, **rules}, found.shards)
    log.info(f"{output}: {found}")
    tokenizer.save(folder / "tokenizer")

    known = {"": 0, **dict(zip(found.shards, found.sizes))}
    sizes = [known[shard] for shard in shards] if all(found.sizes) else None  # hub datasets have none
    reader = ShardReader(shards, work, text_field)
    documents: list[PipelineStep] = [reader, ChunkFilter(folder / "tokenizer"), Tally("read")]
    passes = []
    if filters == "code":
        documents += [CodeFilter(tuple(extensions)), Tally("code rules")]
    if dedup != "none":
        passes.append(Pass("digests", "hashing documents", [*documents, WriteDigests(work)], len(shards), sizes))
        passes.append(Pass("duplicates", "finding duplicates", [FindDuplicates(work)], len(shards)))
        documents += [DropDuplicates(work, shards), Tally("dedup")]
    if dedup == "minhash":
        near_dedup_passes, drop = near_dedup(work, documents, len(shards), sizes)
        passes += near_dedup_passes
        documents += [drop, Tally("near dedup")]
    if decontaminate:
        documents += [decontamination(work, decontaminate), Tally("decontamination")]
    # one core per task; only when tasks run one at a time may the tokenizer's threads use the other cores
    writer = TokenWriter(str(folder), seed, special_tokens, threads=executor == "local" and (workers or 1) == 1)
    statistics = logs / f"{len(passes)}_tokens" / "stats"
    passes.append(Pass("tokens", "tokenizing", [*documents, writer], len(shards), sizes))
    manifest = ManifestWriter(folder, work, statistics, found, seed)
    passes.append(Pass("manifest", "writing checksums", [manifest], 1))
    try:
        done = run_passes(passes, str(logs), executor, workers, executor_options or {})
    except NoDocuments:
        shutil.rmtree(folder)
        raise
    return Manifest.load(folder) if done else None


def _claim(folder: Path, tokenizer: Tokenizer, arguments: dict[str, Any], shards: list[str]) -> list[str]:
    """Claim a folder for a preparation with these arguments; reject a folder that contains anything else.

    Returns:
        The shards, indexed by task. A resumed preparation keeps its original list, with "" for each shard that has
        since been removed.
    """
    record, arguments = folder / "logs" / "arguments.json", {"tokenizer": tokenizer.fingerprint, **arguments}
    removed: list[int] = []
    if (folder / MANIFEST).exists():
        raise UserError(f"output: {folder}: already contains token files; remove it or choose another folder")
    if record.exists():
        previous = json.loads(record.read_text())
        for name, value in arguments.items():
            if previous.get(name) != value and not (name == "tokenizer" and tokenizer.has_fingerprint(previous[name])):
                raise UserError(
                    f"output: {folder}: contains an unfinished preparation with a different value of {name}; remove it "
                    "or choose another folder"
                )
        original: list[str] = previous["sources"]
        removed = [rank for rank, shard in enumerate(original) if shard not in shards]
        changed = set(removed) ^ set(previous["removed"])
        read = [original[rank] for rank in changed if any(folder.glob(f"logs/*/completions/{rank:05d}"))]
        if read or [shard for shard in original if shard in shards] != shards:
            detail = f" ({read[0]} has been added or removed since it was processed)" if read else ""
            raise UserError(
                f"output: {folder}: contains an unfinished preparation of different shards{detail}; remove it or "
                "choose another folder"
            )
        for rank in changed:  # files left behind by an interrupted task
            for file in folder.glob(f"{rank:05d}_*"):
                file.unlink()
        shards = original
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output: {folder}: not empty, and not a preparation; choose another folder")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({**arguments, "sources": shards, "removed": removed}))
    for rank in removed:
        log.warning(f"{shards[rank]}: no longer exists; continuing without it")
    return ["" if rank in removed else shard for rank, shard in enumerate(shards)]
