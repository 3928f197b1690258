"""Shards in every supported format yield the same documents; unreadable lines and files are reported."""

import gzip
import json
import lzma

import fsspec
import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from codegen_jax.data.formats import Text
from codegen_jax.data.inputs import list_shards
from codegen_jax.data.shards import Skipped, read_documents
from codegen_jax.errors import UserError
from tests.conftest import write_shard

TEXTS = ["def f():\n    pass\n", "日本 🙂", "x" * 100_000, "last"]


def read(*inputs, text_field="text"):
    """The texts of all shards, and the number of lines skipped for each reason."""
    skipped = Skipped()
    shards = list_shards([str(source) for source in inputs]).shards
    return [
        document.text for shard in shards for document in read_documents(shard, skipped, Text(text_field))
    ], skipped.counts


def two_frames(path):
    halves = [write_shard(path.with_name(f"{i}.jsonl.zst"), TEXTS[2 * i : 2 * i + 2]) for i in range(2)]
    path.write_bytes(b"".join(fsspec.open(half).open().read() for half in halves))


def long_window(path):
    """Write a file as `zstd --ultra --long=31` does, with a window above the 128 MiB that readers accept by default."""
    options = {zstd.CompressionParameter.window_log: 28}
    with zstd.ZstdFile(path, "w", options=options) as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())


def as_parquet(path):
    parquet.write_table(pyarrow.table({"id": range(4), "text": TEXTS}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda path: write_shard(path, TEXTS)),
        ("a.jsonl.gz", lambda path: write_shard(path, TEXTS)),
        ("a.jsonl.zst", lambda path: write_shard(path, TEXTS)),
        ("a.jsonl.xz", lambda path: write_shard(path, TEXTS)),
        ("a.ndjson.bz2", lambda path: write_shard(path, TEXTS)),
        ("a.json.gz", lambda path: write_shard(path, TEXTS)),
        ("a.json", lambda path: write_shard(path, TEXTS)),  # accepted because it is named explicitly
        ("frames.jsonl.zst", two_frames),  # one-shot decompression stops after the first frame
        ("long.jsonl.zst", long_window),
        ("a.parquet", as_parquet),
    ],
)
def test_every_format_yields_the_same_texts_and_reports_what_is_read(tmp_path, name, write):
    write(tmp_path / name)
    fractions = []
    list(read_documents(str(tmp_path / name), Skipped(), progress=fractions.append))
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] == 1
    assert read(str(tmp_path / name)) == (TEXTS, {})


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


def as_json(**fields):
    return json.dumps(fields).encode()


READABLE = {
    "NaN in an unused field": b'{"text": "t", "meta": {"stars": NaN, "low": -Infinity}}',
    "a number beyond float64": b'{"id": 1e999, "text": "t"}',
    "a number of 5,000 digits": b'{"id": ' + b"9" * 5000 + b', "text": "t"}',
    "a lone surrogate in another field": b'{"text": "t", "meta": {"title": "\\ud800"}}',
    "a byte order mark": b"\xef\xbb\xbf" + as_json(text="t"),
    "surrounding spaces": b"  " + as_json(text="t") + b" \t",
    "a repeated field": b'{"text": "old", "text": "t"}',
    "Unicode line separators": '{"text": "t", "x": "\u2028\x85"}'.encode(),
}


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("line", READABLE.values(), ids=READABLE)
def test_unusual_but_readable_lines_are_read(tmp_path, line, ends):
    (tmp_path / "a.jsonl").write_bytes(ends.join([line, b"", as_json(text="a\r\nb"), b"  ", line]) + ends)
    assert read(tmp_path / "a.jsonl") == (["t", "a\r\nb", "t"], {})


SKIPPED = {
    b'{"text": "cut': "a truncated JSON object",
    b"{'text': 'Python'}": "not JSON",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\\ud800"}': "lone surrogate in the text",
    b'{"text": "t", "meta": ' + b"[" * 5000 + b"]" * 5000 + b"}": "JSON nested too deeply",
    b"[1]": "a list, not a JSON object",
    b'"text"': "a string, not a JSON object",
    b"null": "null, not a JSON object",
    b'{"content": "x"}': "no field text",
    b'{"text": 3}': "field text is a number",
    b'{"text": NaN}': "field text is a number",
    b'{"text": null}': "field text is null",
    b'{"text": ["x"]}': "field text is a list",
    b'{"text": ""}': "empty text",
}


def test_lines_without_a_document_are_counted_by_reason_and_the_first_is_recorded(tmp_path):
    good = as_json(text="good")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *SKIPPED, good, *SKIPPED, good]))
    skipped = Skipped()
    texts = [document.text for document in read_documents(str(tmp_path / "a.jsonl"), skipped)]
    assert texts == ["good"] * 3
    assert skipped.counts == {reason: 2 * list(SKIPPED.values()).count(reason) for reason in SKIPPED.values()}
    for number, (line, reason) in enumerate(SKIPPED.items(), 2):
        if reason != "field text is a number" or b"3" in line:
            assert skipped.first[reason] == {"line": number, "starts": line.decode(errors="replace")[:200]}


def test_the_text_field_can_be_set(tmp_path):
    parquet.write_table(
        pyarrow.table({"content": TEXTS, "path": ["a.py"] * 4, "size": [1] * 4}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.jsonl").write_bytes(as_json(content="x", path="b.py") + b"\n" + as_json(text="y"))
    assert read(tmp_path, text_field="content") == ([*TEXTS, "x"], {"no field content": 1})
    assert next(read_documents(str(tmp_path / "b.jsonl"), Skipped(), Text("content"))).path == "b.py"
    for name, others in (("a.parquet", "content, path, size"), ("b.jsonl", "content, path")):
        (tmp_path / "b.jsonl").write_bytes(as_json(content="x", path="b.py"))
        with pytest.raises(UserError, match=f"^text_field: .*{name} has no field text; choose one of {others}"):
            read(tmp_path / name)


@pytest.mark.parametrize("as_string", [False, True])
def test_a_document_has_its_source_and_path(tmp_path, as_string):
    meta = {"pile_set_name": "Github", "path": "a/b.py"}
    lines = [
        {"text": "x", "meta": json.dumps(meta) if as_string else meta},
        {"text": "y"},
        {"text": "z", "meta": "cut {"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [document[:3] for document in read_documents(str(tmp_path / "a.jsonl"), Skipped())]
    assert found == [("x", "Github", "a/b.py"), ("y", "unknown", ""), ("z", "unknown", "")]


def test_parquet_documents_have_source_and_path(tmp_path):
    rows = {"text": ["x"], "meta": [{"pile_set_name": "Github", "path": "a.py"}], "other": [1]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    [document] = read_documents(str(tmp_path / "a.parquet"), Skipped())
    assert document[:3] == ("x", "Github", "a.py")


LINES = (as_json(text="x") + b"\n") * 1000
NOT_SHARDS = {
    "a.jsonl": [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer, .*git lfs pull"),
        (LINES.decode().encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
        (gzip.compress(LINES), "compressed with gzip; rename it to end in .gz"),
        (lzma.compress(LINES), "compressed with xz; rename it to end in .xz"),
        (b"PK\x03\x04 not\njson\n", "a zip archive"),
        (b"<!DOCTYPE html>\n<html>\n", "a web page, not the file"),
        (b'[\n{"text":\n "x"}\n]\n', "a single JSON array; write one object per line"),
        (b'  [{"text": "x"}]', "a single JSON array; write one object per line"),
        (b"# a title\n", "line 1 is not JSON: '# a title'; restore or remove the file"),
        (b"[" * 100_000, "a single JSON array"),
    ],
    "a.jsonl.gz": [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (gzip.compress(LINES.decode().encode("utf-16")), "UTF-16 text"),
        (LINES, "can't be read .*; restore or remove it"),
    ],
    "a.jsonl.zst": [(gzip.compress(LINES), "compressed with gzip")],
    "a.parquet": [(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"), (LINES, "can't be read")],
}


CASES = [(name, *case) for name, cases in NOT_SHARDS.items() for case in cases]


@pytest.mark.parametrize(("name", "content", "what"), CASES, ids=range(len(CASES)))
def test_a_file_that_is_not_a_shard_is_described(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{what}"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_a_truncated_shard_is_named(tmp_path, name):
    path = tmp_path / name
    as_parquet(path) if name.endswith("parquet") else write_shard(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{name}: can't be read"):
        read(str(path))
