"""Start real training processes for tests, slow them down and wait for them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

# `codegen-jax train`, optionally with pauses between steps, a failing step or steps that refuse large writes
PROGRAM = """
import resource, sys, time
sys.modules["torch"] = None  # tensorboardX would import it if installed, which takes longer than these runs
from codegen_jax.training import loop
pause, fails_at, refused = float(sys.argv[1]), int(sys.argv[2]), [int(n) for n in sys.argv[3].split("-")]
fast = loop.prefetch
def slow(load, steps):
    for step, batch in zip(steps, fast(load, steps), strict=True):
        time.sleep(pause)
        limit = 20_000 if refused[0] <= step + 1 <= refused[-1] else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if step + 1 == fails_at:
            raise RuntimeError("this host lost its disk")
        yield batch
loop.prefetch = slow
from codegen_jax.cli import main
main(sys.argv[4:])
import tensorstore
files = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
print("bytes read:", sum(value["value"] for metric in files for value in metric["values"]))
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(config, file: Path, *, count=1, devices=8, pause=0.0, fails_at=(), refused="0-0", first="", **environment):
    """Start `count` processes of a run with `devices` devices each.

    Args:
        pause: seconds to sleep before each step.
        fails_at: process i fails at step fails_at[i]; 0: never.
        refused: steps such as "5-9" in which the system refuses to write more than 20 kB to a file.
        first: code that each process runs before anything else.
        environment: additional environment variables.
    """
    file.write_text(yaml.safe_dump(config.to_dict()))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last flag wins
    inherited = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}  # see conftest.py
    environment = inherited | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"} | environment
    arguments = ["train", str(file)]
    if count > 1:
        address = f"127.0.0.1:{free_port()}"
        arguments += ["--distributed.coordinator", address, "--distributed.num_processes", str(count)]
    fails_at = list(fails_at) + [0] * (count - len(fails_at))
    return [
        subprocess.Popen(
            [sys.executable, "-c", first + PROGRAM, str(pause), str(fails_at[i]), refused, *arguments]
            + (["--distributed.process_id", str(i)] if count > 1 else []),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(count)
    ]


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read a process's output up to a line that contains this text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed: {process.stderr.read()}")


def wait_until(condition: Callable[[], bool], timeout=60) -> None:
    """Check a condition every millisecond until it holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"condition still false after {timeout} s"
        time.sleep(0.001)


def finish(processes: list[subprocess.Popen], timeout=120) -> list[tuple[int, str]]:
    """Wait for all processes; return the exit code and standard error of each."""
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors)]
