"""Helpers for a model evaluation's output folder: read it, and check that killed commands resume correctly."""

import json
import os
import random
import signal
import subprocess
import time


def content(folder):
    """The files of a finished evaluation by name, except timings and parts/."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("timings")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_kills_change_nothing(command, folder, parts):
    """Check that `command(output)` writes the same files when it is killed and restarted as when it is not.

    Args:
        parts: numbers of part files; the command gets a SIGKILL soon after it has written each number.

    Returns:
        The folder of the killed command.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    whole, killed = folder / "whole", folder / "killed"
    subprocess.run(command(whole), check=True, env=environment, capture_output=True)
    for count in parts:
        process = subprocess.Popen(command(killed), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while len(list(killed.glob("parts/*/*.jsonl"))) < count and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command(killed), check=True, env=environment, capture_output=True)
    assert content(whole) == content(killed)
    return killed
