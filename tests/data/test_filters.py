"""Filters drop documents by the paper's rules and by file extension, and report the reason."""

import pytest
from datatrove.data import Document

from codegen_jax.data.filters import CodeFilter


def filtered(text, path="a.py", **options):
    result = CodeFilter(**options).filter(Document(text=text, id="0", metadata={"path": path}))
    return "kept" if result is True else result[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = y\n" * 3, "kept"),
        ("z" * 99 + "\n", "kept"),
        (("z" * 100 + "\n") * 3, "average line length of 100 characters or more"),  # line ends do not count
        ("z" * 100, "average line length of 100 characters or more"),
        (("z" * 100 + "\r\n") * 3 + "\n", "kept"),  # an empty line counts
        ("z" * 1000 + "\n" * 20, "kept"),
        ("z" * 1001 + "\n" * 20, "line of more than 1,000 characters"),
        ("0123456789abcdefABCDEF\n" * 30, "more than 90% digits"),
        ("0" * 9 + "x", "kept"),  # 90% is not more than 90%
        ("0" * 90 + "\n" * 10, "kept"),
        ("0" * 91 + "\n" * 10, "more than 90% digits"),  # line ends count as characters here
        ("日" * 99, "kept"),  # characters, not bytes
    ],
)
def test_the_papers_rules_drop_a_text_with_the_reason(text, expected):
    assert filtered(text) == expected


@pytest.mark.parametrize("path", ["a.c", "b/a.H", "a.cpp", "a.go", "A.java", "a.mjs", "a.py", ""])
def test_the_six_languages_and_documents_without_a_path_are_kept(path):
    assert filtered("x\n", path) == "kept"


@pytest.mark.parametrize("path", ["a.rs", "py", "a.py.txt", "a.json", "Makefile"])
def test_other_extensions_are_dropped(path):
    assert filtered("x\n", path) == "file extension"


def test_extensions_can_be_set():
    assert filtered("x\n", "a.rs", extensions=(".rs",)) == "kept"
    assert filtered("x\n", "a.py", extensions=(".rs",)) == "file extension"


def test_a_text_of_only_line_ends_is_kept():
    assert filtered("\n\n") == "kept"
