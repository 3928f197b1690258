"""Handle SIGTERM, which clouds and clusters send before reclaiming a machine, and Ctrl-C at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run was signaled to stop; with several processes, JAX notifies all of them at the same step.

    Attributes:
        signal: the signal this process received.
        training: whether steps have begun; before that, Ctrl-C ends the run at once, since there is nothing to save.
    """

    def __init__(self) -> None:
        self.requested, self.training = False, False
        self.signal = signal.SIGTERM

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; call it at the end of each step in every process."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self.requested

    def interrupt(self, *_: Any) -> None:
        """Handle Ctrl-C; a second one ends the run at once."""
        if not self.training or self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.SIGINT
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def watch_preemption() -> Iterator[Preemption]:
    """Record SIGTERM and SIGINT instead of dying from them."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption  # signal handlers can only be set in the main thread
        return

    def request_stop(*_: Any) -> None:
        preemption.requested = True

    handlers: dict[signal.Signals, Any] = {signal.SIGINT: preemption.interrupt}
    if jax.process_count() == 1:  # with several processes, JAX installs its own
        handlers[signal.SIGTERM] = request_stop
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield preemption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
