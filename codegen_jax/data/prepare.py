"""Raw shards to token files, as passes of datatrove pipelines: read, filter, deduplicate, tokenize, shuffle, write.

One task a shard, so the files do not depend on the number of workers, and a preparation that was stopped goes on with
the tasks that are missing. Deduplication must have seen all documents before it drops one, so each pass reads them
anew, which costs little beside tokenizing.
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
from codegen_jax.data.executors import EXECUTORS, Pass, run_passes
from codegen_jax.data.filters import CODE_EXTENSIONS, CodeFilter, LineFilter
from codegen_jax.data.inputs import list_shards
from codegen_jax.data.ngrams import decontamination, near_dedup
from codegen_jax.data.prepare_report import DROPPED, Tally, note_read
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
    """Task i reads shard i; out come documents with source, path and UTF-8 length as metadata.

    Args:
        shards: "" for one that was removed, which has no documents.
        work: folder for what the report says of them.
        text_field: which holds the documents.
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
        for text, source, path in read_documents(shard, skipped, self.text_field):
            metadata = {"source": source, "path": path, "bytes": len(text.encode())}
            yield Document(text=text, id=f"{rank}/{count}", metadata=metadata)
            count += 1
        for reason, lines in skipped.counts.items():
            self.stat_update(DROPPED + reason, value=lines)
        note_read(self.work, rank, shard, count, skipped)


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
    """Tokenize shards into a folder of token files; what became of the documents is in its report.json.

    Args:
        inputs: as in `list_shards`.
        output: a new or empty folder, or one whose preparation with the same arguments was stopped: it goes on. Shards
            that it has not read yet may be gone by then.
        tokenizer: is copied into the folder.
        text_field: of the lines or rows, that holds the documents.
        special_tokens: read <|endoftext|> and the like in a document as special tokens; they are text otherwise.
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
        UserError: for inputs without shards or documents, an unreadable shard, a tokenizer that does not keep code, or
            a folder that holds something else.
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

    reader = ShardReader(shards, work, text_field)
    documents: list[PipelineStep] = [reader, LineFilter(folder / "tokenizer"), Tally("read")]
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
    writer = TokenWriter(str(folder), seed, special_tokens, threads=executor == "local" and (workers or 1) == 1)
    statistics = logs / f"{len(passes)}_tokens" / "stats"
    passes.append(Pass("tokens", [*documents, writer], len(shards)))
    passes.append(Pass("manifest", [ManifestWriter(folder, work, statistics, found, seed)], 1))
    try:
        done = run_passes(passes, str(logs), executor, workers, executor_options or {})
    except NoDocuments:
        shutil.rmtree(folder)
        raise
    return Manifest.load(folder) if done else None


def _claim(folder: Path, tokenizer: Tokenizer, arguments: dict[str, Any], shards: list[str]) -> list[str]:
    """Take a folder for a preparation with these arguments; refuse one that holds anything else.

    Returns:
        The shards by the number of their task: of a preparation that goes on, those that it began with, and "" for each
        that is gone since.
    """
    record, arguments = folder / "logs" / "arguments.json", {"tokenizer": tokenizer.fingerprint, **arguments}
    removed: list[int] = []
    if (folder / MANIFEST).exists():
        raise UserError(f"output: {folder}: already holds token files; remove it or choose another folder")
    if record.exists():
        held = json.loads(record.read_text())
        for name, value in arguments.items():
            if held.get(name) != value and not (name == "tokenizer" and tokenizer.is_named(held[name])):
                raise UserError(f"output: {folder}: an unfinished preparation with other {name}; remove it")
        began: list[str] = held["sources"]
        removed = [rank for rank, shard in enumerate(began) if shard not in shards]
        changed = set(removed) ^ set(held["removed"])
        read = [began[rank] for rank in changed if any(folder.glob(f"logs/*/completions/{rank:05d}"))]
        if read or [shard for shard in began if shard in shards] != shards:
            named = f" ({read[0]} was there, or was not, when it was read)" if read else ""
            raise UserError(f"output: {folder}: an unfinished preparation with other sources{named}; remove it")
        for rank in changed:  # what a task that was stopped in the middle has left
            for file in folder.glob(f"{rank:05d}_*"):
                file.unlink()
        shards = began
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output: {folder}: not empty and not token files; choose another folder")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({**arguments, "sources": shards, "removed": removed}))
    for rank in removed:
        log.warning(f"{shards[rank]}: is gone since this preparation began, which goes on without it")
    return ["" if rank in removed else shard for rank, shard in enumerate(shards)]
