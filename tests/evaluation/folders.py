"""The output folder of a model's evaluation: read in tests, and written by commands that are killed."""

import json
import os
import random
import signal
import subprocess
import time


def content(folder):
    """The files of a finished evaluation by name, except the timings and parts/."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("timings")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_kills_change_nothing(command, folder, parts):
    """Run `command(output)` undisturbed, and again with a SIGKILL once so many parts are there each time.

    Returns:
        The folder of the command that was killed.
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
