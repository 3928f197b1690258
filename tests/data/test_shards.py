import gzip
import json
from collections import Counter

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from codegen_jax.data.shards import list_shards, read_documents
from codegen_jax.errors import UserError
from tests.conftest import write_shard

TEXTS = ["def f():\n    pass\n", "日本 🙂", "x" * 100_000, "last"]


def read(*inputs):
    skipped = Counter()
    return [
        document.text for shard in list_shards(list(inputs)) for document in read_documents(shard, skipped)
    ], skipped


def two_frames(path):
    halves = [write_shard(path.with_name(f"{i}.jsonl.zst"), TEXTS[2 * i : 2 * i + 2]) for i in range(2)]
    path.write_bytes(b"".join(fsspec.open(half).open().read() for half in halves))


def as_parquet(path):
    parquet.write_table(pyarrow.table({"id": range(4), "text": TEXTS}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda path: write_shard(path, TEXTS)),
        ("a.jsonl.gz", lambda path: write_shard(path, TEXTS)),
        ("a.jsonl.zst", lambda path: write_shard(path, TEXTS)),
        ("frames.jsonl.zst", two_frames),  # one-shot decompression stops after the first frame
        ("a.parquet", as_parquet),
    ],
)
def test_every_format_yields_the_same_texts(tmp_path, name, write):
    write(tmp_path / name)
    assert read(str(tmp_path / name)) == (TEXTS, {})


def test_files_folders_globs_and_urls_name_shards(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "deep/c.jsonl.gz"):
        write_shard(tmp_path / name, [name])
    (tmp_path / "notes.txt").write_text("not a shard")
    assert read(str(tmp_path))[0] == ["a.jsonl.zst", "b.jsonl", "deep/c.jsonl.gz"]
    assert read(f"{tmp_path}/*.jsonl*")[0] == ["a.jsonl.zst", "b.jsonl"]
    assert read(f"file://{tmp_path}/b.jsonl", str(tmp_path / "deep"))[0] == ["b.jsonl", "deep/c.jsonl.gz"]


def test_remote_files_are_read_by_url():
    with fsspec.open("memory://bucket/0.jsonl.zst", "wt", compression="infer") as file:
        file.write('{"text": "remote"}\n')
    assert read("memory://bucket")[0] == ["remote"]


def test_a_dataset_is_read_through_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_shard(tmp_path / "set/train.jsonl", TEXTS[:2])
    write_shard(tmp_path / "set/test.jsonl", TEXTS[3:])
    assert read(f"hub:{tmp_path}/set")[0] == TEXTS[:2]
    assert read(f"hub:{tmp_path}/set@test")[0] == TEXTS[3:]


def test_lines_without_a_document_are_skipped_and_counted(tmp_path):
    lines = [
        json.dumps({"text": "good"}).encode(),
        b'{"text": "cut',
        b"\xff\xfe",
        b'{"text": "\\ud800"}',  # a lone surrogate
        b"[1]",
        b'{"content": "x"}',
        b'{"text": 3}',
        b'{"text": ""}',
        json.dumps({"text": "also good"}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    texts, skipped = read(str(tmp_path / "a.jsonl"))
    assert texts == ["good", "also good"]
    assert skipped == {"not a JSON object": 3, "lone surrogate": 1, "no text": 2, "empty text": 1}


@pytest.mark.parametrize("as_string", [False, True])
def test_a_document_knows_its_source_and_path(tmp_path, as_string):
    meta = {"pile_set_name": "Github", "path": "a/b.py"}
    lines = [
        {"text": "x", "meta": json.dumps(meta) if as_string else meta},
        {"text": "y"},
        {"text": "z", "meta": "cut {"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = list(read_documents(str(tmp_path / "a.jsonl"), Counter()))
    assert found == [("x", "Github", "a/b.py"), ("y", "unknown", ""), ("z", "unknown", "")]


def test_parquet_has_sources_too(tmp_path):
    rows = {"text": ["x"], "meta": [{"pile_set_name": "Github", "path": "a.py"}], "other": [1]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert list(read_documents(str(tmp_path / "a.parquet"), Counter())) == [("x", "Github", "a.py")]


@pytest.mark.parametrize("content", [b"PK\x03\x04 not\njson\n", b"[" * 100_000])
def test_a_shard_without_any_json_is_named(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"a.jsonl: not one of its \d line\(s\) is a JSON object"):
        read(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_a_shard_cut_short_is_named(tmp_path, name):
    path = tmp_path / name
    as_parquet(path) if name.endswith("parquet") else write_shard(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read(str(path))


def test_a_shard_that_is_not_what_its_name_says_is_named(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(gzip.compress(b'{"text": "x"}'))
    with pytest.raises(UserError, match=r"a.jsonl.zst: cannot be read"):
        read(str(tmp_path))


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.jsonl", "nope://bucket"])
def test_an_input_without_shards_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=source.replace("*", r"\*")):
        list_shards([source])
