"""What the command writes to a terminal: bars with the time left, whole lines, and no color if NO_COLOR is set."""

import json
import logging
import os
import pty
import re
import signal
import sys
from pathlib import Path

import pytest
import yaml

from codegen_jax.cli import main, models
from tests.conftest import write_shard
from tests.runs import tiny_run

ROOT = Path(__file__).parents[2]
# several commands in one process, since importing JAX takes longer than they do
PROGRAM = """
import json, sys
from codegen_jax import progress
from codegen_jax.cli import main
progress.DELAY = 0
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as exit:
        print(f"exit {exit.code}", flush=True)
"""
COLOR, ESCAPE = re.compile(r"\x1b\[[\d;]*m"), "\x1b"
TIMES = r".*\[\d\d:\d\d<(\d\d:\d\d|\?), "


def on_terminal(commands, folder, kind):
    """All that these commands show on a terminal of this kind."""
    child, screen = pty.fork()
    if child == 0:
        os.chdir(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": kind, "FORCE_COLOR": ""}
        words = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
        os.execve(sys.executable, words, environment)
    text = b""
    while True:
        try:
            found = os.read(screen, 1 << 16)
        except OSError:  # the child has closed the terminal
            break
        text += found
    os.close(screen)
    assert os.waitpid(child, 0)[1] == 0, text.decode()
    return text.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts, tokenizer):
    folder = tmp_path_factory.mktemp("terminal")
    for number in range(2):
        write_shard(folder / f"shards/{number}.jsonl.zst", texts[number::2])
    tokenizer.save(folder / "tokenizer")
    config = tiny_run("run", "tokens", training={"steps": 2}).to_dict()
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def shown(folder):
    prepare = "prepare shards --tokenizer tokenizer --output tokens --workers 2"
    commands = [
        "--help",
        "nonsense",
        prepare,
        "prepare shards --tokenizer tokenizer --output others --dedup minhash",
        "train run.yaml",
        "convert run model --to hf",
        "evaluate model perplexity tokens --max-windows 2",
        "generate model --prompt x --max-new-tokens 2 --stream",
        prepare,  # refused, since it is done
    ]
    return on_terminal([command.split() for command in commands], folder, "xterm-256color")


def test_each_long_part_has_a_bar_with_the_time_left(shown):
    # the first passes report from worker processes
    passes = [
        "tokenizing (1/2)",
        "hashing documents (1/7)",
        "hashing n-grams (3/7)",
        "clustering near-duplicates (5/7)",
    ]
    for title in [*passes, "training", "converting", "loading the model", "perplexity"]:
        assert re.search(rf"\r{re.escape(title)}: 100%\|{TIMES}", shown), title
    assert "Reading dup files" not in shown  # datatrove's own


def test_bars_and_lines_are_whole(shown):
    lines = [line.rpartition("\r")[2] for line in shown.splitlines()]
    assert [line for line in lines if "codegen-jax: " in line and not line.startswith(("codegen-jax", "usage"))] == []
    assert lines[-2].startswith("codegen-jax: error: --output: ") and lines[-1] == "exit 2"
    assert any(line.startswith("step      2  loss ") for line in lines)


def test_no_color_is_honored(shown):
    assert "usage: " in shown and "codegen-jax: error: " in shown
    assert not COLOR.search(shown) and "\x1b]" not in shown


def test_a_terminal_that_cannot_move_the_cursor_gets_plain_lines(folder, shown):
    commands = [
        "tokenizer train shards --output t --vocab-size 300",
        "evaluate model perplexity tokens --max-windows 2",
    ]
    text = on_terminal([command.split() for command in commands], folder, "dumb")
    assert "perplexity" in text and ESCAPE not in text and "\r" not in text


class Streaming:
    """A model that logs before its text and in the middle of it."""

    def __init__(self, error=None):
        self.error = error

    def stream(self, prompt, **options):
        log = logging.getLogger("codegen_jax.inference.generate")
        log.info("compiled prefill")
        yield " one"
        log.info("compiled decode")
        yield " two"
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "last"),
    [(None, []), (KeyboardInterrupt(), ["codegen-jax: error: interrupted"])],
)
def test_messages_do_not_interrupt_streamed_text(monkeypatch, capsys, error, last):
    monkeypatch.setattr(models, "load", lambda *_, **__: Streaming(error))
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # as on a terminal, where both are seen in order
    words = ["generate", "model", "--prompt", "x =", "--stream"]
    if error is None:
        main(words)
    else:
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().out.splitlines() == [
        "codegen-jax: compiled prefill",
        "x = one two",
        "codegen-jax: compiled decode",
        *last,
    ]
