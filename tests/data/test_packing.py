"""Rows hold whole examples, each exactly once, packed as a plain best-fit-decreasing packs them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.data.packing import Examples, best_fit
from codegen_jax.data.prepare import prepare
from codegen_jax.data.rows import ids_of, starts_of, targets_of
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from tests.conftest import write_shard


def rows_of(items, rows):
    found = [[] for _ in range(max(rows) + 1)]
    for item, row in zip(items, rows, strict=True):
        found[row].append(item)
    return found


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_best_fit_fills_rows_as_a_search_over_all_rows_does(lengths):
    packed = rows_of(lengths, best_fit(np.array(lengths), 40))
    expected = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in expected if sum(row) + length <= 40]
        row = max(fitting, key=sum) if fitting else []
        expected += [] if fitting else [row]
        row.append(length)
    assert all(row and sum(row) <= 40 for row in packed)
    assert Counter(map(sum, packed)) == Counter(map(sum, expected))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, texts, tokenizer):
    root = tmp_path_factory.mktemp("packed")
    shards = [write_shard(root / f"{i}.jsonl", [text[:n] for n, text in enumerate(texts[i::2], 5)]) for i in range(2)]
    for name, pack in (("packed", True), ("example", False)):
        examples = {"format": "pairs", "fields": {"prompt": "text", "completion": "text"}, "pack": pack}
        prepare(shards, str(root / name), tokenizer, **examples, sequence_length=100)
    return {name: TokenFiles(root / name) for name in ("packed", "example")}


@pytest.mark.parametrize("packed", [True, False])
def test_each_example_is_in_one_row_and_nothing_else_is(folders, packed):
    files = folders["packed" if packed else "example"]
    rows = Examples(files, 100, packed)
    expected = Counter()
    for file, (ids, mask) in enumerate(zip(files.arrays, files.masks, strict=True)):
        splits = files.ends(file)[:-1].astype(int)
        for example, trained in zip(np.split(ids, splits), np.split(mask, splits), strict=True):
            expected[tuple(np.where(trained, example, -1 - example.astype(int)))] += 1
    found = Counter()
    for row in (rows[number] for number in range(len(rows))):
        used = int((row != -1).sum())
        assert (row[used:] == -1).all() and row.shape == (101,) and row.dtype == np.int32
        [starts] = np.nonzero(starts_of(row[:used]))
        assert starts[0] == 0 and (len(starts) == 1 or packed)
        for part in np.split(row[:used], starts[1:]):
            assert not targets_of(part)[0] >= 0  # nothing comes before it in its document
            found[tuple(np.where(targets_of(part) >= 0, ids_of(part), -1 - ids_of(part)))] += 1
    assert found == expected
    assert (len(rows) < sum(expected.values())) == packed


def test_a_row_too_short_for_an_example_is_refused_with_the_remedy(folders):
    with pytest.raises(UserError, match=r"examples of up to \d+ tokens.*= 51; .*--sequence-length 50, or raise data"):
        Examples(folders["packed"], 50, True)
