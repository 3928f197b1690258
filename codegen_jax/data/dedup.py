"""Exact deduplication by SHA-256 over all shards, in three passes: hash documents, find duplicates, drop them.

datatrove's own passes use 64-bit hashes, which collide within a few billion documents; here the full digests are
compared. The first copy in shard order is kept, regardless of the number of workers. A task needs 40 bytes of memory
per document of its shard.

    WORK/digests/RANK.npy             records of one shard's documents, sorted by digest
    WORK/duplicates/BUCKET/RANK.npy   documents to drop from that shard, among those with digests in the bucket's range
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from codegen_jax.errors import UserError

DIGEST = np.dtype([("digest", "S32"), ("shard", "<u4"), ("document", "<u4")])


class WriteDigests(PipelineStep):
    """First pass: hash every document; one task per shard."""

    type, name = "DEDUP", "digests"

    def __init__(self, work: Path):
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        digests = bytearray()
        for document in data:
            digests += hashlib.sha256(document.text.encode()).digest()
        records = np.zeros(len(digests) // 32, DIGEST)
        records["digest"] = np.frombuffer(digests, "S32")
        records["shard"] = rank
        records["document"] = np.arange(len(records))
        (self.work / "digests").mkdir(parents=True, exist_ok=True)
        np.save(self.work / f"digests/{rank:05d}.npy", records[np.argsort(records["digest"])])


class FindDuplicates(PipelineStep):
    """Second pass: one task per range of digests; with as many ranges as shards, each holds about a shard's digests."""

    type, name = "DEDUP", "duplicates"

    def __init__(self, work: Path):
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        first, last = ((2**256 * bucket // world_size) for bucket in (rank, rank + 1))
        parts = []
        for file in sorted(self.work.glob("digests/*.npy")):
            records = np.load(file, mmap_mode="r")
            start = bisect_left(records["digest"], first.to_bytes(32))
            stop = len(records) if rank + 1 == world_size else bisect_left(records["digest"], last.to_bytes(32))
            parts.append(np.array(records[start:stop]))
        records = np.sort(np.concatenate(parts))  # by digest, then shard, then document
        repeats = records[1:][records["digest"][1:] == records["digest"][:-1]]
        folder = self.work / f"duplicates/{rank:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in np.unique(repeats["shard"]):
            np.save(folder / f"{shard:05d}.npy", repeats["document"][repeats["shard"] == shard])


class DropDuplicates(PipelineStep):
    """Third pass: yield the documents of the first pass without the duplicates.

    Raises:
        UserError: if the number of documents in the shard has changed since the first pass.
    """

    type, name = "DEDUP", "drop"

    def __init__(self, work: Path, shards: list[str]):
        super().__init__()
        self.work, self.shards = work, shards

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        files = self.work.glob(f"duplicates/*/{rank:05d}.npy")
        duplicates = {document for file in files for document in np.load(file).tolist()}
        expected, seen = len(np.load(self.work / f"digests/{rank:05d}.npy", mmap_mode="r")), 0
        for document in data:
            if seen in duplicates:
                self.stat_update(f"{StatHints.dropped}_duplicate")
            else:
                yield document
            seen += 1
        if seen != expected:
            raise UserError(
                f"{self.shards[rank]}: has {seen} documents, but had {expected} when they were hashed; remove the "
                "output folder and start over"
            )
