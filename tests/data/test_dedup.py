"""Exact deduplication keeps the first of equal texts and every text that differs."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest

from codegen_jax.data.formats import Text
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.data.tokens import TokenFiles
from tests.conftest import write_shard


def documents(folder, tokenizer):
    """The documents in each token file."""
    arrays = TokenFiles(folder).arrays
    files = [np.split(array, np.flatnonzero(array == tokenizer.eos_id) + 1)[:-1] for array in arrays]
    return [Counter(tokenizer.decode(ids[:-1].tolist()) for ids in file) for file in files]


@pytest.fixture
def shards(tmp_path):
    """Random letters over three shards, repeated within and across shards, and a fourth shard with "a" and "z"."""
    generator = random.Random(0)
    texts = [[generator.choice("abcdefgh") for _ in range(20)] for _ in range(3)] + [["a", "z"]]
    return texts, [write_shard(tmp_path / f"shards/{i}.jsonl", shard) for i, shard in enumerate(texts)]


def test_the_first_of_equal_texts_is_kept(tmp_path, shards, tokenizer):
    texts, files = shards
    prepare(files, str(tmp_path / "out"), tokenizer, dedup="exact")
    seen, expected = set(), []
    for shard in texts:
        expected.append(Counter(text for text in dict.fromkeys(shard) if text not in seen))
        seen.update(shard)
    assert documents(tmp_path / "out", tokenizer) == [counts for counts in expected if counts]
    assert load_report(tmp_path / "out")["stages"][1]["dropped"] == {"duplicate": 62 - 9}
    assert not (tmp_path / "out/work").exists()


def test_texts_with_any_difference_are_kept(tmp_path, tokenizer):
    texts = ["x", "x ", "X", "x\n", "\x00", "\x00\x00"]
    manifest = prepare([write_shard(tmp_path / "0.jsonl", texts)], str(tmp_path / "out"), tokenizer, dedup="exact")
    assert manifest.documents == len(texts)


def test_full_digests_are_compared(tmp_path, tokenizer, monkeypatch):
    """Digests share their first 31 bytes, and some end in NUL, which NumPy's byte strings drop."""

    class Digest:
        def __init__(self, text):
            self.text = text

        def digest(self):
            return b"\xff" * 31 + bytes([len(self.text) % 3])

    monkeypatch.setattr(hashlib, "sha256", Digest)
    shards = [write_shard(tmp_path / f"{i}.jsonl", texts) for i, texts in enumerate((["a", "bb", "ccc"], ["d", "ee"]))]
    from codegen_jax.data.dedup import DropDuplicates, FindDuplicates, WriteDigests
    from codegen_jax.data.prepare import ShardReader

    for rank in range(2):
        WriteDigests(tmp_path).run(ShardReader(shards, tmp_path, Text()).run(rank=rank), rank, 2)
    for rank in range(2):
        FindDuplicates(tmp_path).run(None, rank, 2)
    kept = [
        [d.text for d in DropDuplicates(tmp_path, shards).run(ShardReader(shards, tmp_path, Text()).run(rank=r), r, 2)]
        for r in (0, 1)
    ]
    assert kept == [["a", "bb", "ccc"], []]
