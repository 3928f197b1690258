"""What the command prints of the library's messages."""

import logging
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from codegen_jax.errors import RUN_LOG


class Console(logging.Handler):
    """A run's own log goes to stdout, above the progress bar; all else to stderr, and a warning only once."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: deque[str] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == RUN_LOG:
            tqdm.write(message)
            return
        if record.levelno == logging.WARNING:
            if message in self.warned:
                return
            self.warned.append(message)
        if record.exc_info:
            traceback.print_exception(record.exc_info[1])
        kind = getattr(record, "kind", "" if record.levelno == logging.INFO else record.levelname.lower())
        print(f"codegen-jax: {kind}{': ' if kind else ''}{message}", file=sys.stderr, flush=True)


@contextmanager
def console() -> Iterator[None]:
    """Print the package's messages for as long as the context lasts."""
    log, handler = logging.getLogger("codegen_jax"), Console()
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # absl gives the root a handler, which would print all of it again
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
