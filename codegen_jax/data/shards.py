"""Raw shards of documents: .jsonl with any compression, .parquet, local or by URL, and hub datasets."""

import glob
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import orjson

from codegen_jax.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
HUB = "hub:"
NOT_AN_OBJECT = "not a JSON object"


def list_shards(inputs: list[str]) -> list[str]:
    """Every shard that the inputs name, sorted within an input.

    Args:
        inputs: files, folders, globs or fsspec URLs of `.jsonl`, `.jsonl.zst`, `.jsonl.gz` and `.parquet`, or hub
            datasets as "hub:OWNER/NAME" (split train) or "hub:OWNER/NAME@SPLIT".

    Raises:
        UserError: for an input that holds no shard.
    """
    shards = []
    for source in inputs:
        if source.startswith(HUB):
            shards.append(source)
            continue
        try:
            files, root = fsspec.core.url_to_fs(source)
            if glob.has_magic(source):
                found = files.glob(root)
            else:
                found = files.find(root) if files.isdir(root) else [root] * files.exists(root)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{source}: cannot be listed ({error})") from error
        remote = "://" in source
        found = [files.unstrip_protocol(f) if remote else f for f in sorted(found) if f.endswith(SUFFIXES)]
        if not found:
            raise UserError(f"{source}: no {', '.join(SUFFIXES)} file here")
        shards += found
    return shards


class RawDocument(NamedTuple):
    """One document of a shard.

    Attributes:
        text: not empty, encodable as UTF-8.
        source: meta.pile_set_name, or "unknown".
        path: meta.path, the name that the document had as a file, or "".
    """

    text: str
    source: str
    path: str


def read_documents(shard: str, skipped: Counter[str]) -> Iterator[RawDocument]:
    """The documents of a shard; lines that hold none are counted in `skipped` by reason.

    Raises:
        UserError: if the shard cannot be read to its end, truncated compression included, or has lines but no JSON.
    """
    lines = 0
    for record in read_records(shard):
        lines += 1
        if isinstance(record, str):
            skipped[record] += 1
        elif not isinstance(text := record.get("text"), str):
            skipped["no text"] += 1
        elif not text:
            skipped["empty text"] += 1
        else:
            meta = _meta(record)
            yield RawDocument(text, str(meta.get("pile_set_name") or "unknown"), str(meta.get("path") or ""))
    if lines and skipped[NOT_AN_OBJECT] == lines:
        raise UserError(f"{shard}: not one of its {lines} line(s) is a JSON object; restore or remove it")


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    """The field meta; some copies of the Pile hold it as a string of JSON."""
    meta = record.get("meta")
    if isinstance(meta, str):
        try:
            meta = orjson.loads(meta)
        except orjson.JSONDecodeError:
            meta = None
    return meta if isinstance(meta, dict) else {}


def read_records(shard: str) -> Iterator[dict[str, Any] | str]:
    """The lines or rows of a shard as dicts, or the reason why a line is none.

    Raises:
        UserError: if the shard cannot be read to its end, truncated compression included.
    """
    try:
        yield from _records(shard)
    except Exception as error:  # each codec, parquet and hub library raises its own
        raise UserError(f"{shard}: cannot be read ({error or type(error).__name__}); restore or remove it") from error


def _records(shard: str) -> Iterator[dict[str, Any] | str]:
    if shard.startswith(HUB):
        from datasets import load_dataset

        name, _, split = shard.removeprefix(HUB).partition("@")
        yield from load_dataset(name, split=split or "train", streaming=True)
    elif shard.endswith(".parquet"):
        from pyarrow import parquet

        with fsspec.open(shard, "rb") as file:
            table = parquet.ParquetFile(file)
            columns = [name for name in ("text", "meta") if name in table.schema_arrow.names]
            for rows in table.iter_batches(columns=columns, batch_size=1000):
                yield from rows.to_pylist()
    else:
        # fsspec reads .zst by backports.zstd: several frames, and an error at a frame that is cut short
        with fsspec.open(shard, "rb", compression="infer") as file:
            yield from map(_parse, file)


def _parse(line: bytes) -> dict[str, Any] | str:
    """A line's JSON, or the reason why there is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:  # of lone surrogates too, which the standard library lets pass
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return NOT_AN_OBJECT
        return "lone surrogate"
    return record if isinstance(record, dict) else NOT_AN_OBJECT
