import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.data.train_tokenizer import train_sentencepiece
from codegen_jax.errors import UserError
from tests.conftest import write_shard


def contents(folder):
    """Every file but datatrove's logs, which hold times."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def shards(tmp_path, texts):
    return [write_shard(tmp_path / f"shards/{i}.jsonl.zst", texts[i::3]) for i in range(3)]


def test_the_files_hold_each_document_once_ended_by_eos(token_folder, texts, tokenizer):
    documents = []
    for array in TokenFiles(token_folder).arrays:
        ends = np.flatnonzero(array == tokenizer.eos_id)
        assert ends[-1] == len(array) - 1
        documents += [tokenizer.decode(ids[:-1]) for ids in np.split(array, ends + 1)[:-1]]
    assert Counter(documents) == Counter(texts)
    assert documents != texts[0::2] + texts[1::2]  # shuffled


def test_the_manifest_counts_what_is_there(tmp_path, texts, tokenizer):
    shard = write_shard(tmp_path / "0.jsonl", [*texts, "", ""])
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, seed=3)
    assert TokenFiles(tmp_path / "out").manifest == manifest
    assert manifest.documents == len(texts)
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    assert manifest.tokens == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert manifest.skipped == {"empty text": 2}
    assert (manifest.tokenizer, manifest.token_bytes, manifest.seed) == (tokenizer.fingerprint, 2, 3)


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path, shards, tokenizer):
    for workers in (1, 2):
        prepare(shards, str(tmp_path / f"{workers}"), tokenizer, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_seed_orders_the_documents(tmp_path, shards, tokenizer):
    for seed in (0, 1):
        prepare(shards, str(tmp_path / f"{seed}"), tokenizer, seed=seed)
    zero, one = (TokenFiles(tmp_path / f"{seed}").arrays[0] for seed in (0, 1))
    assert sorted(zero) == sorted(one) and zero.tolist() != one.tolist()


def test_a_stopped_preparation_goes_on_with_the_missing_shards(tmp_path, shards, tokenizer):
    prepare(shards, str(tmp_path / "whole"), tokenizer)
    good = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(good[:-10])
    with pytest.raises(UserError, match=r"shards/2.jsonl.zst: cannot be read"):
        prepare(shards, str(tmp_path / "resumed"), tokenizer)
    with pytest.raises(UserError, match="unfinished token files"):
        TokenFiles(tmp_path / "resumed")
    done = next((tmp_path / "resumed").glob("00000*.ds"))
    os.utime(done, ns=(1, 1))

    Path(shards[2]).write_bytes(good)
    prepare(shards, str(tmp_path / "resumed"), tokenizer)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert done.stat().st_mtime_ns == 1  # not made again


def test_an_unfinished_preparation_of_other_things_is_refused(tmp_path, shards, tokenizer, texts):
    Path(shards[2]).write_bytes(b"broken")
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        prepare(shards, out, tokenizer)
    before = contents(out)
    other = train_sentencepiece(texts, vocab_size=400)
    for arguments, seed in (
        ((shards[:2], out, tokenizer), 0),
        ((shards, out, other), 0),
        ((shards, out, tokenizer), 1),
    ):
        with pytest.raises(UserError, match="unfinished preparation of other"):
            prepare(*arguments, seed=seed)
    assert contents(out) == before


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path, shards, tokenizer):
    prepare(shards, str(tmp_path / "done"), tokenizer)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for name, message in (("done", "already holds token files"), ("mine", "not empty"), ("file", "not empty")):
        with pytest.raises(UserError, match=message):
            prepare(shards, str(tmp_path / name), tokenizer)
    assert contents(tmp_path) == before


def test_shards_without_documents_are_an_error_and_leave_nothing(tmp_path, tokenizer):
    shard = write_shard(tmp_path / "0.jsonl", ["", ""])
    with pytest.raises(UserError, match="no document with text"):
        prepare([shard], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()
