"""How progress is shown on a terminal, on one that cannot move the cursor, and where there is no terminal."""

import logging
import os
import re
import sys
from contextlib import contextmanager, nullcontext

import pytest
from tqdm import tqdm

from codegen_jax import progress
from codegen_jax.cli.console import console
from codegen_jax.progress import Progress, only_our_bars, track

TIMES = re.compile(r"\[\d\d:\d\d<(\d\d:\d\d|\?), ")  # elapsed and left, as in a bar


@contextmanager
def terminal(monkeypatch, kind="xterm"):
    """Make stderr a terminal; yields a function that returns all that it has shown."""
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", kind)
    with open(master, "rb", buffering=0) as screen, open(slave, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)

        def shown():
            stderr.write("end")
            stderr.flush()
            text = b""
            while not text.endswith(b"end"):
                text += screen.read(1 << 16)
            return text.decode().removesuffix("end")

        yield shown


@pytest.fixture
def immediate(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "INTERVAL", 0)


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch, immediate):
    with terminal(monkeypatch) as shown:
        with Progress("reading", 4e9, "B", initial=1e9) as bar:
            bar.update(3e9)
        first, *_, last = shown().split("\r")[1:-1]
    assert first.startswith("reading:  25%|") and " 1.00G/4.00G [" in first and TIMES.search(first)
    assert last.startswith("reading: 100%|") and TIMES.search(last) and last.endswith("B/s]")


@pytest.mark.parametrize("kind", ["dumb", None])
def test_lines_show_the_fraction_rate_and_time_left_if_no_bar_can_be_drawn(monkeypatch, immediate, capsys, kind):
    def work():
        with console(), Progress("reading", 4, "shard") as bar:
            bar.update(1)
            bar.update(2)
            bar.update(1)

    if kind is None:
        work()
        text = capsys.readouterr().err
    else:
        with terminal(monkeypatch, kind) as shown:
            work()
            text = shown().replace("\r\n", "\n")
    assert "\r" not in text and "\x1b" not in text
    first, second, last = text.splitlines()
    assert re.fullmatch(r"codegen-jax: reading: 25%, 1/4, .*shard/s, \d\d:\d\d left", first)
    assert second.startswith("codegen-jax: reading: 75%, 3/4, ") and last == "codegen-jax: reading: done in 00:00"


@pytest.mark.parametrize("on_terminal", [False, True])
def test_short_work_shows_nothing_even_around_a_message(monkeypatch, capsys, on_terminal):
    with terminal(monkeypatch) if on_terminal else nullcontext() as shown:
        with console(), Progress("reading", 2, "shard") as bar:
            bar.update()
            logging.getLogger("codegen_jax").info("compiled")
            bar.note("and more")
            bar.update()
        text = shown().replace("\r\n", "\n") if on_terminal else capsys.readouterr().err
    assert text == "codegen-jax: compiled\n"


def test_a_first_unit_that_takes_long_has_a_bar(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.01)
    with terminal(monkeypatch) as shown:
        with Progress("reading", 2, "shard") as bar:
            bar.timer.join()
        lines = shown()
    assert lines.count("reading:   0%|") == 2 and lines.endswith("]\r\n")  # drawn by the timer, and at the end


def test_messages_and_errors_do_not_cut_a_bar(monkeypatch, immediate):
    with terminal(monkeypatch) as shown:
        with console(), pytest.raises(KeyboardInterrupt), Progress("reading", 2, "shard") as bar:
            bar.update()
            logging.getLogger("codegen_jax").info("compiled")
            raise KeyboardInterrupt
        text = shown()
    before, after = text.split("codegen-jax: compiled\r\n")
    assert before.endswith("\r") and before.rstrip("\r").endswith(" ")  # the bar was cleared
    assert after.startswith("\rreading:  50%|") and after.endswith("]\r\n")


def test_nothing_is_shown_if_another_process_shows_it(monkeypatch, immediate, capsys):
    with console(), Progress("reading", 2, "shard", shown=False) as bar:
        bar.update()
    with console(), Progress("training", 2, "step", lines=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
    with terminal(monkeypatch) as shown:
        with Progress("reading", 2, "shard", shown=False) as bar:
            bar.update()
        assert shown() == ""


def test_an_estimated_total_may_change(immediate, capsys):
    with console(), Progress("reading", 100, "B") as bar:
        bar.move_to(10, 40)
        bar.move_to(50, 50)
    assert capsys.readouterr().err.splitlines()[0].startswith("codegen-jax: reading: 25%, 10.0/40.0, ")
    assert bar.done == bar.total == 50


def test_items_are_counted_once_they_are_done(immediate, capsys):
    with console():
        for item in track("ab", "reading", "letter"):
            assert ("reading" in capsys.readouterr().err) == (item == "b")


def test_a_terminal_without_a_known_size_shows_80_columns(monkeypatch, immediate):
    with terminal(monkeypatch) as shown:
        with Progress("reading", 2, "shard"):
            pass
        assert 70 < len(shown().split("\r")[1]) <= 80


def test_the_bars_of_libraries_are_hidden_unless_they_can_be_redrawn(monkeypatch, capsys):
    with only_our_bars():
        list(tqdm(range(2)))
    assert capsys.readouterr().err == ""
    list(tqdm(range(2)))
    assert "2/2" in capsys.readouterr().err  # as before
    with terminal(monkeypatch) as shown, only_our_bars():
        list(tqdm(range(2), ncols=80, nrows=24))
        assert "2/2" in shown()
