"""SIGTERM, which clouds and clusters send before they take a machine away, seen at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run was told to stop; with many processes JAX tells all of them at the same step."""

    def __init__(self) -> None:
        self.told = False

    def reached(self, step: int) -> bool:
        """Call it at the end of each step, in each process."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self.told


@contextmanager
def watch_preemption() -> Iterator[Preemption]:
    """Notice SIGTERM instead of dying of it."""
    preemption = Preemption()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield preemption  # JAX's own handler stays, or there can be none
        return

    def tell(*_: Any) -> None:
        preemption.told = True

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
