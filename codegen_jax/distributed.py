"""Many processes as one run: joining them, agreeing, speaking with one voice, and failing together."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from jax.experimental import multihost_utils

from codegen_jax.config import DistributedConfig
from codegen_jax.errors import RUN_LOG, Preempted, UserError, report

log = logging.getLogger(RUN_LOG)

GONE_SECONDS = 20  # a process that is silent for so long is gone, and the others end with a line that says which
HEARTBEAT_SECONDS = 60  # then JAX would end them, with a stack trace
FAILURE = "codegen_jax/failure"  # key of the first failure's message in the coordinator's store
ALIVE = "codegen_jax/alive"  # keys of the processes' heartbeats there


@contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Join this process to the others of its run for as long as the context lasts.

    If one of them fails, all of them print its message and exit at once, also those that wait for it in a collective.

    Raises:
        UserError: if there is no cluster to be found.
    """
    if config.coordinator is None:
        yield
        return
    _initialize(config)
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(finished,), daemon=True)
    watcher.start()
    try:
        yield
    except Preempted:
        raise
    except BaseException as error:
        _fail_together(error)
    finally:
        finished.set()
        # A process that exits while a thread is inside a C++ call, such as one to the coordinator's store, may abort
        watcher.join(timeout=GONE_SECONDS)


def _initialize(config: DistributedConfig) -> None:
    explicit = config.coordinator != "auto"
    too_late = UserError(
        f"distributed.coordinator: {config.coordinator}: not all processes met there within distributed.timeout = "
        f"{config.timeout} s; check that process 0 runs at that address, that the port is open and that all are started"
    )
    # where JAX's own timer runs out it aborts with a stack trace
    timer = threading.Timer(config.timeout, lambda: os._exit(report(too_late)))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            config.coordinator if explicit else None,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            cluster_detection_method="deactivate" if explicit else None,
        )
    except (ValueError, RuntimeError) as error:
        hint = "" if explicit else "; no Cloud TPU, Slurm, Kubernetes or MPI job was found: give host:port instead"
        raise UserError(f"distributed.coordinator: {config.coordinator}: {str(error).splitlines()[0]}{hint}") from error
    finally:
        timer.cancel()


def _client():
    """The coordinator's store of keys and values, which JAX does not export; Orbax reaches it in the same way."""
    return jax._src.distributed.global_state.client  # pyright: ignore[reportAttributeAccessIssue]


def _watch(finished: threading.Event) -> None:
    """Once per second: show that this process lives, and end it if another has failed or is gone."""
    heard: dict[str, tuple[str, float]] = {}  # the other processes' last beats, and when they came
    for beat in itertools.count():
        ended, gone, failure = finished.wait(1.0), None, None
        with suppress(Exception):  # the coordinator is gone, which JAX itself notices; or there is no failure to get
            _client().key_value_set(f"{ALIVE}/{jax.process_index()}", "ended" if ended else str(beat), True)
            gone = _gone(heard)
            failure = _client().key_value_try_get(FAILURE)
        if ended:
            return
        if failure or gone:
            code, message = failure.split(" ", 1) if failure else (1, gone)
            report(UserError(message))
            if jax.process_index() == 0:
                time.sleep(5)  # the store is in this process: the others must have read the message
            os._exit(int(code))


def _gone(heard: dict[str, tuple[str, float]]) -> str | None:
    """The message for a process that has not been heard of."""
    now = time.monotonic()
    for key, beat in _client().key_value_dir_get(ALIVE):
        if heard.get(key, ("", 0.0))[0] != beat:
            heard[key] = beat, now
        elif beat != "ended" and now - heard[key][1] > GONE_SECONDS:
            return (
                f"process {key.rpartition('/')[2]} is gone: no sign of it for {GONE_SECONDS} s; it was killed, or "
                "its machine or network is lost; the same command goes on from the last checkpoint"
            )
    return None


def _fail_together(error: BaseException) -> None:
    """Tell the others and go. Leaving as usual would wait for computations that wait for the others."""
    code = report(error, where=f"process {jax.process_index()}")
    with suppress(Exception):  # another process was first
        _client().key_value_set(FAILURE, f"{code} process {jax.process_index()}: {str(error) or type(error).__name__}")
    if jax.process_index() == 0:
        time.sleep(5)
    os._exit(code)


def is_first() -> bool:
    """Whether this is process 0, which writes what there is one of: logs, records, pictures."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """A line of the run's log, once for all processes."""
    if is_first():
        log.info(message)


def first_alone(action: Callable[[], object]) -> None:
    """Do something in process 0 while the others wait for it."""
    if is_first():
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(getattr(action, "__name__", "first_alone"))


def largest(value: int) -> int:
    """The largest of the processes' values, known to all."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if jax.process_count() > 1 else value


def first_said(text: str) -> str:
    """The first of the processes' texts that is not empty, known to all; its first 400 bytes."""
    if jax.process_count() == 1:
        return text
    padded = np.frombuffer(text.encode()[:400].ljust(400, b"\0"), np.uint8)
    texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]
    return next(filter(None, texts), "")
