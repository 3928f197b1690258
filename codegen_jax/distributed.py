"""Multi-process runs: join the processes, log once, agree on values, and fail together."""

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

LOST_AFTER_SECONDS = 20  # without a heartbeat, a process counts as lost; the others name it and exit
HEARTBEAT_SECONDS = 60  # JAX's own timeout, which ends the processes with a stack trace
FAILURE = "codegen_jax/failure"  # key of the first failure's message in the coordinator's key-value store
ALIVE = "codegen_jax/alive"  # prefix of the processes' heartbeat keys


@contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Join this process to the other processes of its run while the context lasts.

    If one process fails, all of them print its message and exit at once, even those blocked in a collective.

    Raises:
        UserError: if no cluster is found.
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
        # a process may abort if it exits while a thread is inside a C++ call, such as one to the coordinator's store
        watcher.join(timeout=LOST_AFTER_SECONDS)


def _initialize(config: DistributedConfig) -> None:
    explicit = config.coordinator != "auto"
    too_late = UserError(
        f"distributed.coordinator: {config.coordinator}: not all processes connected within distributed.timeout = "
        f"{config.timeout} s; check that process 0 runs at this address, the port is open and all processes are started"
    )
    # when JAX's own timer expires, it aborts with a stack trace
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
        hint = "" if explicit else "; no Cloud TPU, Slurm, Kubernetes or MPI job was found: set it to host:port"
        raise UserError(f"distributed.coordinator: {config.coordinator}: {str(error).splitlines()[0]}{hint}") from error
    finally:
        timer.cancel()


def _client():
    """The coordinator's key-value store, which JAX does not export; Orbax accesses it the same way."""
    return jax._src.distributed.global_state.client  # pyright: ignore[reportAttributeAccessIssue]


def _watch(finished: threading.Event) -> None:
    """Once per second, send a heartbeat, and exit if another process has failed or is lost."""
    seen: dict[str, tuple[str, float]] = {}  # last heartbeat of each process, and when it was first seen
    for beat in itertools.count():
        ended, lost, failure = finished.wait(1.0), None, None
        with suppress(Exception):  # the coordinator is lost, which JAX itself detects, or no failure is stored
            _client().key_value_set(f"{ALIVE}/{jax.process_index()}", "ended" if ended else str(beat), True)
            lost = _lost_process(seen)
            failure = _client().key_value_try_get(FAILURE)
        if ended:
            return
        if failure or lost:
            code, message = failure.split(" ", 1) if failure else (1, lost)
            report(UserError(message))
            if jax.process_index() == 0:
                time.sleep(5)  # process 0 hosts the store: give the others time to read the message
            os._exit(int(code))


def _lost_process(seen: dict[str, tuple[str, float]]) -> str | None:
    """Update the heartbeats seen; return a message if a process has stopped sending them."""
    now = time.monotonic()
    for key, beat in _client().key_value_dir_get(ALIVE):
        if seen.get(key, ("", 0.0))[0] != beat:
            seen[key] = beat, now
        elif beat != "ended" and now - seen[key][1] > LOST_AFTER_SECONDS:
            return (
                f"process {key.rpartition('/')[2]} is lost: no heartbeat for {LOST_AFTER_SECONDS} s; it was killed, or "
                "its machine or network is down; the same command resumes from the last checkpoint"
            )
    return None


def _fail_together(error: BaseException) -> None:
    """Publish the error and exit. A normal exit would wait for computations that wait for the other processes."""
    code = report(error, where=f"process {jax.process_index()}")
    with suppress(Exception):  # another process failed first
        _client().key_value_set(FAILURE, f"{code} process {jax.process_index()}: {str(error) or type(error).__name__}")
    if jax.process_index() == 0:
        time.sleep(5)
    os._exit(code)


def is_first() -> bool:
    """Whether this is process 0, which writes the logs, records and plots."""
    return jax.process_index() == 0


def log_once(message: str) -> None:
    """Log a line in process 0 only."""
    if is_first():
        log.info(message)


def run_on_first(action: Callable[[], object]) -> None:
    """Run an action in process 0 while the other processes wait for it."""
    if is_first():
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(getattr(action, "__name__", "run_on_first"))


def max_over_processes(value: int) -> int:
    """The maximum of all processes' values, returned in every process."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if jax.process_count() > 1 else value


def first_nonempty(text: str) -> str:
    """The first non-empty text of all processes (its first 400 bytes), returned in every process."""
    if jax.process_count() == 1:
        return text
    padded = np.frombuffer(text.encode()[:400].ljust(400, b"\0"), np.uint8)
    texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]
    return next(filter(None, texts), "")
