"""scripts/code_pairs on shards of Python code, as a user runs it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_shard

SCRIPT = Path(__file__).parents[1] / "scripts/code_pairs"
CODE = '''
@decorated
def one(x: int) -> int:
    """Return 1."""
    return 1  # one

class A:
    async def two(self,
                  y):
        r"""Return
        2.\\d"""

        if y:
            return 2


    def no_docstring(self):
        return 3

    def no_body(self):
        """Nothing."""
'''


def run(folder, *arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], cwd=folder, capture_output=True, text=True)


def test_pairs_are_signature_with_docstring_and_body(tmp_path):
    write_shard(tmp_path / "shards/0.jsonl.zst", [CODE, "def broken(:", "x = 1"])
    result = run(tmp_path, "shards", "out/pairs.jsonl")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "out/pairs.jsonl: 2 pairs; skipped 1 files that can't be parsed\n"
    records = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert [(record["prompt"], record["completion"]) for record in records] == [
        ('def one(x: int) -> int:\n    """Return 1."""\n', "    return 1  # one\n"),
        (
            'async def two(self,\n              y):\n    r"""Return\n    2.\\d"""\n',
            "\n    if y:\n        return 2\n",
        ),
    ]
    for record in records:
        ast.parse(record["prompt"] + record["completion"])


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (["x = 1"], ("shards", "out.jsonl"), "contain no Python functions with a docstring"),
        ([CODE], ("shards", "exists.jsonl"), "exists.jsonl: exists; choose a new file"),
        ([CODE], ("nowhere", "out.jsonl"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, texts, arguments, message):
    write_shard(tmp_path / "shards/0.jsonl", texts)
    (tmp_path / "exists.jsonl").write_text("mine")
    result = run(tmp_path, *arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert (tmp_path / "exists.jsonl").read_text() == "mine" and not (tmp_path / "out.jsonl").exists()
