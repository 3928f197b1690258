"""scripts/code_shards on folders of source files, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from codegen_jax.data.shards import Skipped, read_documents

SCRIPT = Path(__file__).parents[1] / "scripts/code_shards"


@pytest.fixture
def code_shards(tmp_path):
    (tmp_path / "source/site-packages").mkdir(parents=True)
    for number in range(60):
        (tmp_path / f"source/{number}.py").write_text(f"x = {number}\n")
    (tmp_path / "source/latin.py").write_bytes("é".encode("latin-1"))
    (tmp_path / "source/.hidden.py").write_text("hidden\n")
    (tmp_path / "source/site-packages/other.py").write_text("other\n")

    def run(*arguments):
        command = [sys.executable, SCRIPT, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_every_source_file_is_in_one_shard_and_the_rest_is_counted(code_shards, tmp_path):
    result = code_shards("source", "shards")
    assert result.returncode == 0 and not result.stderr, result.stderr
    texts = {
        split: [document.text for shard in shards for document in read_documents(str(shard), Skipped())]
        for split, shards in (
            ("train", (tmp_path / "shards/train").iterdir()),
            ("validation", [tmp_path / "shards/validation.jsonl.zst"]),
        )
    }
    assert sorted(texts["train"] + texts["validation"]) == sorted(f"x = {number}\n" for number in range(60))
    counts = f"{len(texts['train'])} files for training, {len(texts['validation'])} for validation"
    assert result.stdout == f"shards: {counts}; skipped 1 that are not UTF-8\n"


@pytest.mark.parametrize("files", [1, 2, 5])
def test_shards_of_a_small_folder_can_be_read(code_shards, tmp_path, files):
    for number in range(files, 60):
        (tmp_path / f"source/{number}.py").unlink()
    assert code_shards("source", "shards").returncode == 0
    shards = {
        str(shard): len(list(read_documents(str(shard), Skipped()))) for shard in tmp_path.glob("shards/**/*.zst")
    }
    assert sum(shards.values()) == files and min(shards.values()) > 0
    assert str(tmp_path / "shards/validation.jsonl.zst") in shards or files == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "shards"), "nowhere: no such folder"),
        (("source", "source"), "source: not empty; choose a new folder"),
        (("source", "shards", ".rs"), "source: contains no .rs files"),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_writes_nothing(code_shards, tmp_path, arguments, message):
    result = code_shards(*arguments)
    assert result.returncode == 2 and not result.stdout and not (tmp_path / "shards").exists()
    assert result.stderr.startswith(f"codegen-jax: error: {message}") and result.stderr.count("\n") == 1
