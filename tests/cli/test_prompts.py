"""Prompts from flags, files and standard input."""

import io
import json
import sys

import pytest

from codegen_jax.cli import make_parser
from codegen_jax.cli.prompts import read_prompts
from codegen_jax.errors import UserError


def prompts(*args):
    return read_prompts(make_parser().parse_args(["generate", "model", *map(str, args)]))


def test_a_text_file_has_one_prompt_per_line_with_any_line_ending(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffdef f(\r\n\r\n    x = \u2028 1 \r\n \nclass Á:".encode())
    assert prompts("--prompt-file", file) == ["def f(", "    x = \u2028 1 ", "class Á:"]


def test_json_lines_may_contain_multi_line_prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = ["a\nb", {"prompt": "c\n", "task_id": 3}]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\r\n")
    assert prompts("--prompt-file", file) == ["a\nb", "c\n"]


def test_standard_input_is_read_like_a_text_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    assert prompts("--prompt-file", "-") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"a"\n\n{"prompt": \n', "line 3: not valid JSON"),
        ('"a"\n{"text": "b"}', r'line 2: must be "TEXT" or {"prompt": "TEXT"}'),
        ("7", "line 1: must be"),
        ('{"prompt": null}', "line 1: must be"),
        ("\ufeff\r\n \n", "contains no prompts"),
        ("", "contains no prompts"),
    ],
)
def test_errors_name_invalid_lines_and_files_without_prompts(tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=f"^{file}: {message}"):
        prompts("--prompt-file", file)


def test_prompts_come_from_flags_or_a_file(tmp_path):
    assert prompts("--prompt", "-", "--prompt", "a\nb") == ["-", "a\nb"]
    with pytest.raises(UserError, match=r"^prompt: required without --prompt-file; see codegen-jax generate --help"):
        prompts()
    with pytest.raises(UserError, match=r"^prompt_file: cannot be combined with --prompt"):
        prompts("--prompt", "a", "--prompt-file", "-")
    with pytest.raises(UserError, match="no such file"):
        prompts("--prompt-file", tmp_path / "none.txt")
