"""What the command prints of the library's messages."""

import logging
import os
import select
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from codegen_jax.errors import RUN_LOG

STDOUT, STDERR = 1, 2


class Console(logging.Handler):
    """A run's own log goes to stdout, all else to stderr, both above a progress bar; and a warning only once.

    A line that can't be written is left out: training outlives the terminal, `head` or disk that took its log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warned: deque[str] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        with leave_out():
            self._print(record)

    def _print(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == RUN_LOG:
            tqdm.write(message)
            sys.stdout.flush()
            return
        if record.levelno == logging.WARNING:
            if message in self.warned:
                return
            self.warned.append(message)
        if record.exc_info:
            traceback.print_exception(record.exc_info[1])
        kind = getattr(record, "kind", "" if record.levelno == logging.INFO else record.levelname.lower())
        # above a progress bar, too, whose line it would continue
        tqdm.write(f"codegen-jax: {kind}{': ' if kind else ''}{message}", file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def leave_out() -> Iterator[None]:
    """Go on where a line can't be written; what nobody reads any more gets no more."""
    try:
        yield
    except OSError:
        for descriptor in (STDOUT, STDERR):
            if is_unread(descriptor):
                discard(descriptor)


def is_unread(descriptor: int) -> bool:
    """Whether a file is a pipe whose reader has ended, such as `head` after its lines."""
    pipes = select.poll()
    pipes.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def discard(descriptor: int) -> None:
    """Let what is written there go nowhere from now on."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def drop_unwritten() -> None:
    """Drop output that can't be written; the interpreter's last flush would fail, and say so."""
    try:
        print(end="", flush=True)
    except OSError:
        discard(STDOUT)


@contextmanager
def console() -> Iterator[None]:
    """Print the package's messages, and lm_eval's warnings, for as long as the context lasts."""
    handler = Console()
    levels = {logging.getLogger("codegen_jax"): logging.INFO, logging.getLogger("lm_eval"): logging.WARNING}
    before = {log: (log.level, log.propagate) for log in levels}
    for log, level in levels.items():
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False  # absl gives the root a handler, which would print all of it again
    try:
        yield
    finally:
        for log in levels:
            log.removeHandler(handler)
            log.level, log.propagate = before[log]
