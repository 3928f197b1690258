"""Raw shards of documents: .jsonl with any compression, .parquet, local or by URL, and hub datasets."""

import glob
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import orjson

from codegen_jax.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
HUB = "hub:"


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


def read_texts(shard: str, skipped: Counter[str]) -> Iterator[str]:
    """The documents of a shard; lines that hold none are counted in `skipped` by reason.

    Raises:
        UserError: if the shard cannot be read to its end, truncated compression included.
    """
    try:
        for record in _records(shard):
            if not isinstance(record, dict):
                skipped["not a JSON object"] += 1
            elif not isinstance(text := record.get("text"), str):
                skipped["no text"] += 1
            elif not text:
                skipped["empty text"] += 1
            else:
                yield text
    except Exception as error:  # each codec, parquet and hub library raises its own
        raise UserError(f"{shard}: cannot be read ({error or type(error).__name__}); restore or remove it") from error


def _records(shard: str) -> Iterator[Any]:
    if shard.startswith(HUB):
        from datasets import load_dataset

        name, _, split = shard.removeprefix(HUB).partition("@")
        yield from load_dataset(name, split=split or "train", streaming=True)
    elif shard.endswith(".parquet"):
        from pyarrow import parquet

        with fsspec.open(shard, "rb") as file:
            for rows in parquet.ParquetFile(file).iter_batches(columns=["text"], batch_size=1000):
                yield from rows.to_pylist()
    else:
        # fsspec reads .zst by backports.zstd: several frames, and an error at a frame that is cut short
        with fsspec.open(shard, "rb", compression="infer") as file:
            for line in file:
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError:
                    yield None
