"""How the command prints the library's log messages."""

import logging
import os
import select
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

from codegen_jax.errors import RUN_LOG

STDOUT, STDERR = 1, 2


class Console(logging.Handler):
    """Print a run's own log to stdout and everything else to stderr, above any progress bar; print each warning once.

    Lines that can't be written are dropped: training continues after its terminal or `head` exits or its disk fills up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warnings: deque[str] = deque(maxlen=1000)
        self.held: list[logging.LogRecord] | None = None  # messages held back; None: print at once

    def emit(self, record: logging.LogRecord) -> None:
        if self.held is not None:
            self.held.append(record)
            return
        with ignore_write_errors():
            self._print(record)

    def _print(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == RUN_LOG:
            tqdm.write(message)
            sys.stdout.flush()
            return
        if record.levelno == logging.WARNING:
            if message in self.warnings:
                return
            self.warnings.append(message)
        if record.exc_info:
            traceback.print_exception(record.exc_info[1])
        kind = getattr(record, "kind", "" if record.levelno == logging.INFO else record.levelname.lower())
        # tqdm.write clears a progress bar first; print would continue its line
        tqdm.write(f"codegen-jax: {kind}{': ' if kind else ''}{message}", file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back messages while text is printed to stdout; end its last line, even after an error."""
    handlers = [handler for handler in logging.getLogger("codegen_jax").handlers if isinstance(handler, Console)]
    for handler in handlers:
        handler.held = []
    try:
        yield
        print(flush=True)
    except OSError:  # stdout can't be written
        raise
    except BaseException:
        with suppress(OSError):
            print(flush=True)
        raise
    finally:
        for handler in handlers:
            held, handler.held = handler.held or [], None
            for record in held:
                handler.handle(record)


@contextmanager
def ignore_write_errors() -> Iterator[None]:
    """Ignore errors of writing output, and discard all later output to a stream without a reader."""
    try:
        yield
    except OSError:
        for descriptor in (STDOUT, STDERR):
            if has_no_reader(descriptor):
                discard(descriptor)


def has_no_reader(descriptor: int) -> bool:
    """Whether a descriptor is a pipe whose reader has exited, such as `head` after its last line."""
    pipes = select.poll()
    pipes.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def discard(descriptor: int) -> None:
    """Redirect a descriptor to the null device."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), descriptor)


def discard_unwritten() -> None:
    """Discard output that can't be written, which would make the interpreter's final flush fail and print an error."""
    try:
        print(end="", flush=True)
    except OSError:
        discard(STDOUT)


@contextmanager
def console() -> Iterator[None]:
    """Print the package's log messages and lm_eval's warnings while the context is active."""
    handler = Console()
    levels = {logging.getLogger("codegen_jax"): logging.INFO, logging.getLogger("lm_eval"): logging.WARNING}
    before = {log: (log.level, log.propagate) for log in levels}
    for log, level in levels.items():
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False  # absl adds a handler to the root logger, which would print everything twice
    try:
        yield
    finally:
        for log in levels:
            log.removeHandler(handler)
            log.level, log.propagate = before[log]
