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


def test_files_folders_and_globs_name_shards(folder):
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
    assert {reason: len(paths) for reason, paths in found.left.items()} == {"hidden": 1, ".txt": 1}
    assert found.nbytes == 2


@pytest.mark.parametrize(
    "name", ["my data [v2]", "what?", "a*b", "a#b", "a,b", "50%20", "a{b}", "a:b", "it's", "données 数据"]
)
def test_what_exists_is_taken_before_it_is_tried_as_a_glob(tmp_path, tokenizer, name):
    shard = write_shard(tmp_path / name / f"{name}.jsonl", ["x = 1\n"])
    write_shard(tmp_path / "a-b/other.jsonl", ["y"])  # the glob a*b would match it
    for number, source in enumerate((tmp_path / name, shard)):
        assert list_shards([str(source)]).shards == [shard]
        assert prepare([str(source)], str(tmp_path / f"out{number}"), tokenizer).documents == 1


def test_what_is_left_is_told_with_its_reason(folder, tmp_path, tokenizer, caplog):
    root = folder("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b.jsonl", "deep/b.jsonl.gz")
    (root / "._a.jsonl").write_bytes(b"\0\5\26\7")
    (root / "notes.txt").write_text("notes")
    (root / "info.json").write_text("{}")
    (root / "LICENSE").write_text("MIT")
    (root / "empty.jsonl").write_bytes(b"")
    (root / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    caplog.set_level("INFO")
    prepare([str(root)], str(tmp_path / "out"), tokenizer)
    left = {
        ".json": {"files": 1, "first": f"{root}/info.json"},
        ".txt": {"files": 1, "first": f"{root}/notes.txt"},
        "empty": {"files": 1, "first": f"{root}/empty.jsonl"},
        "file(s) without a suffix": {"files": 1, "first": f"{root}/LICENSE"},
        "hidden": {"files": 2, "first": f"{root}/._a.jsonl"},
        "link(s) to nothing": {"files": 1, "first": f"{root}/gone.jsonl"},
    }
    size = sum((root / name).stat().st_size for name in ("a.jsonl", "b.jsonl", "deep/b.jsonl.gz"))
    inputs = load_report(tmp_path / "out")["inputs"]
    assert inputs == {"files": {".jsonl": 2, ".jsonl.gz": 1}, "bytes": size, "left": left, "without_documents": []}
    (line,) = [record.getMessage() for record in caplog.records if "reading" in record.getMessage()]
    assert "reading 2 .jsonl, 1 .jsonl.gz (0.0 MB); leaving 1 .json " in line
    assert f"2 hidden ({root}/._a.jsonl, ...)" in line


def test_linked_folders_are_followed_once(folder, tmp_path):
    root = folder("a/x.jsonl")
    write_shard(tmp_path / "elsewhere/y.jsonl", ["y"])
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "a/loop").symlink_to(root)
    found = list_shards([str(root)])
    assert [os.path.basename(shard) for shard in found.shards] == ["x.jsonl", "y.jsonl"]
    assert len(found.left["linked folder(s) that are read by another name"]) == 2


def test_a_file_that_a_folder_holds_by_two_names_is_read_once(folder):
    root = folder("part.jsonl", "deep/other.jsonl")
    (root / "a-latest.jsonl").symlink_to(root / "part.jsonl")
    found = list_shards([str(root)])
    assert sorted(map(os.path.basename, found.shards)) == ["other.jsonl", "part.jsonl"]
    assert found.left == {"file(s) that are read by another name": [f"{root}/a-latest.jsonl"]}


@pytest.mark.parametrize("second", ["a.jsonl", "../in/a.jsonl", "*.jsonl", "link.jsonl"])
def test_a_file_that_two_inputs_name_is_refused(folder, second):
    root = folder("a.jsonl")
    if second == "link.jsonl":
        (root.parent / "link.jsonl").symlink_to(root / "a.jsonl")
        second = "../link.jsonl"
    with pytest.raises(UserError, match=r"jsonl: is read as .*/in/a.jsonl already; name it once"):
        list_shards([str(root), str(root / second)])


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.jsonl", "nope://bucket"])
def test_an_input_that_is_not_there_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=source.replace("*", r"\*")):
        list_shards([source])


def test_an_input_without_shards_tells_what_it_holds(tmp_path):
    for name in ("a.txt", "b.txt", ".c.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"no shard here, but 2 \.txt, 1 hidden; a shard's name ends in \.jsonl"):
        list_shards([str(tmp_path)])
    with pytest.raises(UserError, match=r"a.txt: no shard here, but 1 \.txt"):
        list_shards([str(tmp_path / "a.txt")])


def test_shards_without_a_document_are_told(folder, tmp_path, tokenizer):
    root = folder("a.jsonl")
    write_shard(root / "blank.jsonl", [""])
    prepare([str(root)], str(tmp_path / "out"), tokenizer)
    assert load_report(tmp_path / "out")["inputs"]["without_documents"] == [f"{root}/blank.jsonl"]


def test_a_dataset_that_the_hub_does_not_give_is_refused_before_anything_is_written(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"^hub:nobody/nothing: not found on this machine .* HF_HUB_OFFLINE is set"):
        prepare(["hub:nobody/nothing@train"], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()
