"""Ownership of an output folder: one run, and one process at a time. Imports nothing heavy."""

import json
import logging
import os
import re
import socket
import time
from io import FileIO
from typing import Any

from etils import epath

from codegen_jax.config import RunConfig
from codegen_jax.errors import UserError
from codegen_jax.storage import is_remote, locked, open_path, write_whole
from codegen_jax.training.records import METRICS, SUMMARY
from codegen_jax.weights.run_folder import CHECKPOINTS, RUN_FILE, whole_checkpoints

log = logging.getLogger(__name__)

LOCK = "lock"

# Fields that may change on resume: paths, devices, run length, reporting intervals. Token files are identified by
# their content, and changes to skip_steps are checked separately.
FREE_FIELDS = {"output", "resume", "mesh", "distributed", "profile", "checkpoint"}
FREE_FIELDS |= {"data.train", "data.validation", "data.skip_steps"}
FREE_FIELDS |= {f"training.{name}" for name in ("steps", "gradient_accumulation_steps", "remat", "log_every")}
FREE_FIELDS |= {f"training.{name}" for name in ("eval_every", "eval_batches", "sample_prompts", "sample_tokens")}
FREE_FIELDS |= {"training.max_bad_steps", "training.wandb_project"}


def claim(folder: epath.Path, record: dict[str, Any]) -> FileIO | None:
    """Claim an output folder for a new run or for resuming the same run.

    Args:
        record: the run's config and data, as stored in run.json.

    Returns:
        The lock file, held until it is closed or this process ends for any reason; None if the storage does not
        support locks.

    Raises:
        UserError: if the folder holds another run or something other than a run, or is in use by a run.
    """
    require_free(folder, record)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    write_whole(folder / RUN_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return lock


def require_free(folder: epath.Path, record: dict[str, Any]) -> None:
    """Raise `UserError` if `claim` would, without changing the folder."""
    path = folder / RUN_FILE
    if not path.exists() and folder.exists() and (not folder.is_dir() or any(p.name != LOCK for p in folder.iterdir())):
        raise UserError(f"output: {folder} exists and is not a run of codegen-jax; choose another folder")
    if path.exists() and _has_begun(folder):
        held = read_record(folder)
        _check_data(record["data"], held["data"], folder)
        _check_skips(record["config"]["data"]["skip_steps"], held["config"]["data"]["skip_steps"], folder)
        ours, theirs = _flat(record["config"]), _flat(held["config"])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"output: {folder} holds another run ({name} is {theirs.get(name)} there, {ours.get(name)} here); "
                    "choose another output folder or remove it"
                )
    if (folder / LOCK).exists() and (lock := _hold(folder)):
        lock.close()


def read_record(folder: epath.Path) -> dict[str, Any]:
    """Return the contents of run.json: the run's config and data."""
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not record.keys() >= {"config", "data"}:
            raise ValueError("it has no config or no data")
        return record
    except ValueError as error:
        raise UserError(f"output: {path} is damaged ({error}); choose another folder") from error


def is_finished(config: RunConfig) -> bool:
    """Whether the output folder holds this exact run with all steps completed."""
    folder = open_path(config.output)
    steps = [int(checkpoint.name) for checkpoint in whole_checkpoints(folder)]
    told = (folder / RUN_FILE).exists() and (folder / SUMMARY).exists()
    if config.resume != "auto" or not told or not steps or steps[-1] < config.training.steps:
        return False
    return _flat(read_record(folder)["config"]) == _flat(config.to_dict())


def _has_begun(folder: epath.Path) -> bool:
    """Whether a run has completed a step in the folder; a run stopped earlier does not own it."""
    metrics = folder / METRICS
    return bool(whole_checkpoints(folder)) or (metrics.exists() and metrics.stat().length > 0)


def _lock(folder: epath.Path) -> FileIO | None:
    """Lock a folder and record the holder in the lock file."""
    file = _hold(folder)
    if file is not None:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    return file


def _hold(folder: epath.Path) -> FileIO | None:
    """Lock a folder; None on object stores, which have no locks."""
    if is_remote(folder):
        return None
    file = locked(folder / LOCK)
    if file is None:
        holder = (folder / LOCK).read_text().strip()
        raise UserError(f"output: {folder} is in use by another run ({holder}); wait for it, or choose another folder")
    return file


def _check_data(ours: dict[str, Any], theirs: dict[str, Any], folder: epath.Path) -> None:
    """Check that the token files are the ones the run started with, wherever they are now."""
    for name in sorted(ours.keys() & theirs.keys()):
        field = f"data.sources.{name}" if name else "data.train"
        now, then = ours[name], {"windows": "file"} | theirs[name]  # not recorded by runs that cut windows by file
        if "-" in then["tokenizer"]:  # "bpe-..." and the like were hashes of a tokenizer's file; the content tells
            then["tokenizer"] = now["tokenizer"]
        if now != then == now | {"windows": then["windows"]}:
            rule = f'"windows": "{then["windows"]}"'
            raise UserError(
                f"{field}: manifest.json cuts these tokens by {now['windows']}, and {folder} has trained on windows of "
                f"each {then['windows']}; set {rule} there, or choose another output folder"
            )
        if now != then:
            raise UserError(
                f"{field}: not the token files that {folder} has trained on: {now['tokens']} tokens of "
                f"{now['tokenizer']} now, {then['tokens']} of {then['tokenizer']} then; give it those, or choose "
                "another output folder"
            )


def _check_skips(ours: list[list[int]], theirs: list[list[int]], folder: epath.Path) -> None:
    """Check that skip_steps changes only affect future steps."""
    done = max((int(checkpoint.name) for checkpoint in whole_checkpoints(folder)), default=0)
    for pair in ours + theirs:
        if ours.count(pair) != theirs.count(pair) and pair[0] <= done:
            raise UserError(
                f"data.skip_steps: {pair} would change what {folder} has done: its newest checkpoint is step {done}; "
                f"to go back, move those from step {pair[0]} on out of {folder / CHECKPOINTS}"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config fields that must not change, by dotted name."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if prefix in FREE_FIELDS or re.fullmatch(r"data\.sources\.[^.]*\.(path|validation)", prefix):
            return
        if isinstance(value, dict):
            for name, child in value.items():
                add(f"{prefix}.{name}" if prefix else name, child)
        else:
            flat[prefix] = value

    add("", config)
    return flat
