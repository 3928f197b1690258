"""Turn raw shards into token files with datatrove pipelines: read, filter, deduplicate, tokenize, shuffle, write.

There is one task per shard, so the files do not depend on the number of workers, and an interrupted preparation
resumes with the missing tasks. Deduplication must see all documents before it drops any, so each pass rereads the
shards, which is cheap compared with tokenizing.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from codegen_jax.data.chat_template import chat_template_of
from codegen_jax.data.dedup import DropDuplicates, FindDuplicates, WriteDigests
from codegen_jax.data.examples import EncodeExamples, ExampleWriter
from codegen_jax.data.executors import EXECUTORS, Pass, note_progress, run_passes
from codegen_jax.data.filters import CODE_EXTENSIONS, ChunkFilter, CodeFilter
from codegen_jax.data.formats import Format, make_format
from codegen_jax.data.infill import MODES, rearranged, with_infill
from codegen_jax.data.inputs import list_shards
from codegen_jax.data.ngrams import decontamination, near_dedup
from codegen_jax.data.parts import check_separate_encoding
from codegen_jax.data.prepare_report import DROPPED, REARRANGED, Tally, record_read
from codegen_jax.data.probe import check_tokenizer
from codegen_jax.data.shards import Skipped, read_documents
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokenizer_metadata import TEMPLATE_FILE
from codegen_jax.data.tokens import MANIFEST, Manifest
from codegen_jax.data.writer import ManifestWriter, NoDocuments, TokenWriter
from codegen_jax.errors import UserError, require, require_seed
from codegen_jax.storage import require_local

log = logging.getLogger(__name__)

FILTERS = ("none", "code")
DEDUP = ("none", "exact", "minhash")
FORMATS = ("text", "pairs", "messages", "alpaca")
LOSS = ("completions", "all")
TOO_LONG = ("cut", "drop")


class ShardReader(PipelineStep):
    """Task i reads shard i and yields documents with source, path, shard, line, UTF-8 length and parts as metadata.

    Args:
        shards: the shards; "" stands for a shard that was removed and yields no documents.
        work: folder for per-shard records that go into the report.
        form: the format of the data.
    """

    type, name = "READER", "shards"

    def __init__(self, shards: list[str], work: Path, form: Format):
        super().__init__()
        self.shards, self.work, self.form = shards, work, form

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        shard = self.shards[rank]
        if not shard:
            return
        skipped, count = Skipped(), 0
        progress = lambda fraction: note_progress(rank, fraction)
        for document in read_documents(shard, skipped, self.form, progress):
            metadata = {**document._asdict(), "shard": shard, "bytes": len(document.text.encode())}
            del metadata["text"]
            yield Document(text=document.text, id=f"{rank}/{count}", metadata=metadata)
            count += 1
        for reason, lines in skipped.counts.items():
            self.stat_update(DROPPED + reason, value=lines)
        record_read(self.work, rank, shard, count, skipped)


class Infill(PipelineStep):
    """Rearranges a share of the documents for fill-in-the-middle; see infill.py.

    Which documents, and where they are cut, depends on the seed and their ids.

    Args:
        rate: the share, from 0 to 1.
        mode: psm, spm or mixed.
        seed: seed of the choices.
    """

    type, name = "FORMAT", "fill-in-the-middle"

    def __init__(self, rate: float, mode: str, seed: int):
        super().__init__()
        self.rate, self.mode, self.seed = rate, mode, seed

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            random = np.random.default_rng([self.seed, *map(int, document.id.split("/"))])
            if random.random() < self.rate:
                document.metadata["parts"] = rearranged(document.text, self.mode, random)
                self.stat_update(REARRANGED, value=1)
            yield document


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    format: str = "text",
    fields: Mapping[str, str] | None = None,
    template: str | None = None,
    loss: str = "completions",
    pack: bool = False,
    sequence_length: int = 2048,
    too_long: str = "cut",
    fim_rate: float = 0.0,
    fim: str = "mixed",
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
        text_field: the field of each line or row that contains the document, for the format "text".
        format: "text", "pairs", "messages" or "alpaca"; see formats.py.
        fields: the data's names for the fields of the other formats, where they differ.
        template: a chat template for messages; None means the tokenizer's, else the default one.
        loss: "completions", or "all" to train on prompts, too.
        pack: whether to put several examples into a row. Otherwise each has a row of its own, and texts are
            concatenated.
        sequence_length: longest example, in tokens trained on; data.sequence_length of the run must not be less.
        too_long: "cut" removes the beginning of longer examples, "drop" drops them; see `examples.fit`.
        fim_rate: share of the documents rearranged for fill-in-the-middle; see infill.py.
        fim: "psm", "spm" or "mixed".
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
        ("format", format, FORMATS),
        ("loss", loss, LOSS),
        ("too_long", too_long, TOO_LONG),
        ("fim", fim, MODES),
        ("executor", executor, EXECUTORS),
    ):
        require(value in valid, f"{name}: must be one of {', '.join(valid)}, got {value}")
    require(workers is None or workers > 0, f"workers: must be positive, got {workers}")
    require_seed("seed", seed)
    require_local("output", output)
    check_tokenizer(tokenizer)
    require(sequence_length > 0, f"sequence_length: must be positive, got {sequence_length}")
    require(0 <= fim_rate <= 1, f"fim_rate: must be from 0 to 1, got {fim_rate}")
    require(not fim_rate or format == "text", f"fim_rate: requires --format text, got {format}")
    for name, value, default in (("loss", loss, LOSS[0]), ("too_long", too_long, TOO_LONG[0])):
        require(value == default or format != "text", f"{name}: requires a format with completions, got text")
    has_examples = format != "text" or pack
    require(
        has_examples or sequence_length == 2048,
        "sequence_length: requires --pack or a format with completions, got text",
    )
    require(fim_rate > 0 or fim == "mixed", "fim: requires --fim-rate")
    require(template is None or format == "messages", f"template: requires --format messages, got {format}")
    chat = None
    if format == "messages":
        chat = chat_template_of(tokenizer, template)
        tokenizer = tokenizer.with_file(TEMPLATE_FILE, chat.source.encode())
    form = make_format(format, fields or {}, chat, text_field)
    if format != "text" or fim_rate:
        check_separate_encoding(tokenizer)
    if fim_rate:
        tokenizer = with_infill(tokenizer, fim)
    found, folder = list_shards(inputs), Path(output).absolute()
    logs, work = folder / "logs", folder / "work"
    rules = {
        "filters": [filters, *extensions] if filters == "code" else filters,
        "dedup": dedup,
        "decontaminate": list(decontaminate),
        "text_field": text_field,
        "special_tokens": special_tokens,
        "format": [format, fields or {}, chat and chat.source] if format != "text" else None,
        "rows": [pack, loss, sequence_length, too_long] if has_examples else None,
        "fim": [fim_rate, fim] if fim_rate else None,
    }
    shards = _claim(folder, tokenizer, {"seed": seed, **rules}, found.shards)
    log.info(f"{output}: {found}")
    tokenizer.save(folder / "tokenizer")

    known = {"": 0, **dict(zip(found.shards, found.sizes))}
    sizes = [known[shard] for shard in shards] if all(found.sizes) else None  # hub datasets have none
    reader = ShardReader(shards, work, form)
    documents: list[PipelineStep] = [reader, ChunkFilter(folder / "tokenizer", whole=has_examples), Tally("read")]
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
    threads = executor == "local" and (workers or 1) == 1
    if fim_rate:
        documents.append(Infill(fim_rate, fim, seed))
    writer = TokenWriter(str(folder), seed, special_tokens, threads)
    if has_examples:
        encode = EncodeExamples(folder / "tokenizer", work, form, sequence_length, loss, too_long, special_tokens)
        documents += [encode, Tally("examples")]
        writer = ExampleWriter(str(folder), seed, special_tokens, threads)
    statistics = logs / f"{len(passes)}_tokens" / "stats"
    passes.append(Pass("tokens", "tokenizing", [*documents, writer], len(shards), sizes))
    windows = "folder" if not has_examples else "packed" if pack else "example"
    manifest = ManifestWriter(folder, work, statistics, found, seed, windows)
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
