"""Files that GitHub and others read, checked against their schemas."""

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
