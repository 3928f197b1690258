"""Prompts from flags, files and standard input."""

import io
import json
import sys

import pytest

from codegen_jax.cli import make_parser
from codegen_jax.cli.prompts import read_prompts
from codegen_jax.errors import UserError


def prompts(*words):
    return read_prompts(make_parser().parse_args(["generate", "model", *map(str, words)]))


def test_a_text_file_has_a_prompt_in_each_line_whoever_wrote_it(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffdef f(\r\n\r\n    x = \u2028 1 \r\n \nclass Á:".encode())
    assert prompts("--prompt-file", file) == ["def f(", "    x = \u2028 1 ", "class Á:"]


def test_json_lines_hold_prompts_of_several_lines(tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = ["a\nb", {"prompt": "c\n", "task_id": 3}]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\r\n")
    assert prompts("--prompt-file", file) == ["a\nb", "c\n"]


def test_standard_input_is_read_as_a_text_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    assert prompts("--prompt-file", "-") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('"a"\n\n{"prompt": \n', "line 3: not JSON"),
        ('"a"\n{"text": "b"}', r'line 2: must be "TEXT" or {"prompt": "TEXT"}'),
        ("7", "line 1: must be"),
        ('{"prompt": null}', "line 1: must be"),
        ("\ufeff\r\n \n", "no prompt in it"),
        ("", "no prompt in it"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_and_so_is_a_file_without_any(tmp_path, content, words):
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=f"^{file}: {words}"):
        prompts("--prompt-file", file)


def test_prompts_come_from_one_place(tmp_path):
    assert prompts("--prompt", "-", "--prompt", "a\nb") == ["-", "a\nb"]
    with pytest.raises(UserError, match=r"^prompt: is missing, or --prompt-file; see codegen-jax generate --help"):
        prompts()
    with pytest.raises(UserError, match=r"^prompt_file: takes the place of --prompt"):
        prompts("--prompt", "a", "--prompt-file", "-")
    with pytest.raises(UserError, match="no such file"):
        prompts("--prompt-file", tmp_path / "none.txt")
