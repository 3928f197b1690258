"""How progress is shown: a bar on a terminal, a line from time to time elsewhere, nothing for short work.

Everything goes to stderr. A bar is redrawn in place, so it is drawn only on a terminal that can move the cursor. The
lines are log messages, and the command prints log messages above a bar.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from functools import partialmethod
from typing import Any, Self, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

DELAY = 2.0  # seconds before a bar appears; shorter work shows none
INTERVAL = 15.0  # seconds between lines
LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"
LAST = "{desc}: done in {elapsed}"


def can_redraw() -> bool:
    """Whether stderr is a terminal that can move the cursor."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def has_size() -> bool:
    """Whether stderr's terminal reports its size; a pseudo-terminal may have 0 rows and columns."""
    try:
        return min(os.get_terminal_size(sys.stderr.fileno())) > 1
    except (OSError, ValueError, AttributeError):
        return False


class Progress:
    """The progress of one piece of work. Close it, or use it as a context, so that the next output has its own line.

    Args:
        name: what is being done.
        total: units of work.
        unit: the unit in the singular ("sample"), or "B" for bytes.
        initial: units already done.
        shown: False shows nothing; used in all processes but one.
        lines: whether to log lines if no bar can be drawn.
    """

    def __init__(
        self, name: str, total: float, unit: str, *, initial: float = 0, shown: bool = True, lines: bool = True
    ):
        self.name, self.total, self.done = name, total, initial
        self.format: dict[str, Any] = {"unit": unit, "unit_scale": unit == "B", "initial": initial}
        draws = shown and can_redraw()
        self.lines = shown and lines and not draws and total > 0
        self.began = self.logged = time.monotonic()
        self.bar = _Bar(
            total=total,
            desc=name,
            disable=not draws,
            delay=DELAY,
            **({"dynamic_ncols": True} if has_size() else {"ncols": 80, "nrows": 24}),
            smoothing=0.1,
            **self.format,
        )
        # draws the bar even if the first unit takes a long time
        self.timer = threading.Timer(DELAY, self.bar.refresh)
        self.timer.daemon = True
        self.draws = draws
        if draws:
            self.timer.start()

    def update(self, count: float = 1) -> None:
        """Add units of finished work."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.lines and now - self.logged >= INTERVAL and self.done < self.total:
            self.logged = now
            log.info(self._line(LINE))

    def move_to(self, done: float, total: float | None = None) -> None:
        """Set the finished work, and the total if it was an estimate."""
        if total is not None:
            self.total = self.bar.total = total
        self.update(done - self.done)

    def note(self, text: str) -> None:
        """Show a text at the end of the bar."""
        self.bar.set_postfix_str(text)

    def close(self) -> None:
        """End the bar's line; the bar stays on the screen in its last state."""
        self.timer.cancel()
        if self.draws:
            self.timer.join()
        self.bar.close()
        if self.lines and self.logged > self.began and self.done >= self.total:
            log.info(self._line(LAST))
        self.lines = False

    def _line(self, template: str) -> str:
        elapsed = time.monotonic() - self.began
        return tqdm.format_meter(self.done, self.total, elapsed, prefix=self.name, bar_format=template, **self.format)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], name: str, unit: str) -> Iterator[T]:
    """Yield the items of a sequence and show how many are done."""
    assert isinstance(items, Sized)
    with Progress(name, len(items), unit) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def only_our_bars() -> Iterator[None]:
    """Hide the bars of libraries such as lm_eval if they can't be redrawn, since each update would print a line."""
    original = tqdm.__init__
    if not can_redraw():
        tqdm.__init__ = partialmethod(original, disable=True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        tqdm.__init__ = original


class _Bar(tqdm):
    """A bar that really stays hidden during its delay, and ends its line if it was drawn.

    tqdm draws its own bar too early if a message is printed, and leaves its line open if only a refresh drew it.
    """

    drawn = False

    def refresh(self, *args: Any, **keywords: Any) -> Any:
        hidden = self.disable or (self.delay > 0 and time.time() < self.start_t + self.delay - 0.1)
        return None if hidden else super().refresh(*args, **keywords)

    def display(self, *args: Any, **keywords: Any) -> Any:
        self.drawn = True
        return super().display(*args, **keywords)

    def clear(self, *args: Any, **keywords: Any) -> None:
        if self.drawn:
            super().clear(*args, **keywords)

    def close(self) -> None:
        if self.drawn and not self.disable:
            self.last_print_t = max(self.last_print_t, self.start_t + self.delay)
        with suppress(OSError):  # the terminal is gone
            super().close()
