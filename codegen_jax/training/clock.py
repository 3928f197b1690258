"""Where a run's wall time goes: goodput is the share spent in steps."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time since creation in seconds, by cause; time without a cause was spent in steps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """Attribute the time spent in the context to `cause`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[cause] += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def goodput(self) -> float:
        """Share of the wall time spent in steps."""
        return 1 - sum(self.spent.values()) / self.seconds

    def __str__(self) -> str:
        return ", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in self.spent.items())
