"""Files that GitHub and contributors read: they follow their schemas, and the files that they name exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        (".github/workflows/ci.yml", "vendor.github-workflows"),
        (".github/workflows/ci.yml", "custom.github-workflows-require-timeout"),
        (".github/ISSUE_TEMPLATE/bug.yml", "vendor.github-issue-forms"),
        ("CITATION.cff", "vendor.citation-file-format"),
    ],
)
def test_a_file_follows_its_schema(file, schema):
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", schema, ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_contributing_names_files_that_exist():
    named = re.findall(r"`([\w./]*(?:/|\.\w{2,4}))`", (ROOT / "CONTRIBUTING.md").read_text())
    named = [path for path in named if path not in ("codegen_jax/",) and "FORMAT" not in path]
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists() and not (ROOT / "codegen_jax" / path).exists()] == []
