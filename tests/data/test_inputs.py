"""Which files are read, and what is reported about the others."""

import os

import fsspec
import pytest

from codegen_jax.data.inputs import list_shards
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.errors import UserError
from tests.conftest import write_shard


@pytest.fixture
def folder(tmp_path):
    """A function that writes shards with these names and returns their folder."""

    def write(*names):
        for name in names:
            write_shard(tmp_path / "in" / name, [name])
        return tmp_path / "in"

    return write


def names(folder, *inputs):
    return [os.path.relpath(shard, folder) for shard in list_shards([str(source) for source in inputs]).shards]


def test_inputs_may_be_files_folders_and_globs(folder):
    root = folder("b.jsonl", "a.jsonl.zst", "deep/c.jsonl.gz")
    assert names(root, root) == ["a.jsonl.zst", "b.jsonl", "deep/c.jsonl.gz"]
    assert names(root, root / "*.jsonl*") == ["a.jsonl.zst", "b.jsonl"]
    assert names(root, root / "**/*.gz", root / "b.jsonl") == ["deep/c.jsonl.gz", "b.jsonl"]
    assert names(root, root / "d*") == ["deep/c.jsonl.gz"]  # a folder, as a shell would expand it
    assert list_shards([f"file://{root}/b.jsonl"]).shards == [f"file://{root}/b.jsonl"]


def test_a_remote_folder_is_listed_like_a_local_one():
    for name in ("0.jsonl.zst", ".cache/1.jsonl", "notes.txt", "deep/2.parquet"):
        with fsspec.open(f"memory://listed/{name}", "wb") as file:
            file.write(b"x")
    found = list_shards(["memory://listed"])
    assert found.shards == ["memory:///listed/0.jsonl.zst", "memory:///listed/deep/2.parquet"]
    assert {reason: len(paths) for reason, paths in found.skipped.items()} == {"hidden": 1, ".txt": 1}
    assert found.nbytes == 2


@pytest.mark.parametrize(
    "name", ["my data [v2]", "what?", "a*b", "a#b", "a,b", "50%20", "a{b}", "a:b", "it's", "données 数据"]
)
def test_an_existing_path_is_not_treated_as_a_glob(tmp_path, tokenizer, name):
    shard = write_shard(tmp_path / name / f"{name}.jsonl", ["x = 1\n"])
    write_shard(tmp_path / "a-b/other.jsonl", ["y"])  # the glob a*b would match it
    for number, source in enumerate((tmp_path / name, shard)):
        assert list_shards([str(source)]).shards == [shard]
        assert prepare([str(source)], str(tmp_path / f"out{number}"), tokenizer).documents == 1


def test_skipped_files_are_reported_by_reason(folder, tmp_path, tokenizer, caplog):
    root = folder("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b.jsonl", "deep/b.jsonl.gz")
    (root / "._a.jsonl").write_bytes(b"\0\5\26\7")
    (root / "notes.txt").write_text("notes")
    (root / "info.json").write_text("{}")
    (root / "LICENSE").write_text("MIT")
    (root / "empty.jsonl").write_bytes(b"")
    (root / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    caplog.set_level("INFO")
    prepare([str(root)], str(tmp_path / "out"), tokenizer)
    skipped = {
        ".json": {"files": 1, "first": f"{root}/info.json"},
        ".txt": {"files": 1, "first": f"{root}/notes.txt"},
        "empty": {"files": 1, "first": f"{root}/empty.jsonl"},
        "file(s) without a suffix": {"files": 1, "first": f"{root}/LICENSE"},
        "hidden": {"files": 2, "first": f"{root}/._a.jsonl"},
        "broken link(s)": {"files": 1, "first": f"{root}/gone.jsonl"},
    }
    size = sum((root / name).stat().st_size for name in ("a.jsonl", "b.jsonl", "deep/b.jsonl.gz"))
    inputs = load_report(tmp_path / "out")["inputs"]
    assert inputs == {"files": {".jsonl": 2, ".jsonl.gz": 1}, "bytes": size, "left": skipped, "without_documents": []}
    (line,) = [record.getMessage() for record in caplog.records if "reading" in record.getMessage()]
    assert "reading 2 .jsonl, 1 .jsonl.gz (0.0 MB); skipping 1 .json " in line
    assert f"2 hidden ({root}/._a.jsonl, ...)" in line


def test_linked_folders_are_followed_once(folder, tmp_path):
    root = folder("a/x.jsonl")
    write_shard(tmp_path / "elsewhere/y.jsonl", ["y"])
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "a/loop").symlink_to(root)
    found = list_shards([str(root)])
    assert [os.path.basename(shard) for shard in found.shards] == ["x.jsonl", "y.jsonl"]
    assert len(found.skipped["linked folder(s) already read under another name"]) == 2


def test_a_file_with_two_names_in_a_folder_is_read_once(folder):
    root = folder("part.jsonl", "deep/other.jsonl")
    (root / "a-latest.jsonl").symlink_to(root / "part.jsonl")
    found = list_shards([str(root)])
    assert sorted(map(os.path.basename, found.shards)) == ["other.jsonl", "part.jsonl"]
    assert found.skipped == {"file(s) already read under another name": [f"{root}/a-latest.jsonl"]}


@pytest.mark.parametrize("second", ["a.jsonl", "../in/a.jsonl", "*.jsonl", "link.jsonl"])
def test_a_file_in_two_inputs_is_rejected(folder, second):
    root = folder("a.jsonl")
    if second == "link.jsonl":
        (root.parent / "link.jsonl").symlink_to(root / "a.jsonl")
        second = "../link.jsonl"
    with pytest.raises(UserError, match=r"jsonl: the same file as .*/in/a.jsonl; name each file once"):
        list_shards([str(root), str(root / second)])


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.jsonl", "nope://bucket"])
def test_a_missing_input_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=source.replace("*", r"\*")):
        list_shards([source])


def test_an_input_without_shards_is_rejected_with_its_contents(tmp_path):
    for name in ("a.txt", "b.txt", ".c.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"no shards found, only 2 \.txt, 1 hidden; shard names end in \.jsonl"):
        list_shards([str(tmp_path)])
    with pytest.raises(UserError, match=r"a.txt: no shards found, only 1 \.txt"):
        list_shards([str(tmp_path / "a.txt")])


def test_shards_without_documents_are_reported(folder, tmp_path, tokenizer):
    root = folder("a.jsonl")
    write_shard(root / "blank.jsonl", [""])
    prepare([str(root)], str(tmp_path / "out"), tokenizer)
    assert load_report(tmp_path / "out")["inputs"]["without_documents"] == [f"{root}/blank.jsonl"]


def test_an_unavailable_hub_dataset_is_rejected_before_anything_is_written(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"^hub:nobody/nothing: not found on this machine .* HF_HUB_OFFLINE is set"):
        prepare(["hub:nobody/nothing@train"], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()
