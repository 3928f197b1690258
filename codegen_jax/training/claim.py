"""Ownership of an output folder: one run, and one process at a time. Imports nothing heavy."""

import dataclasses
import json
import logging
import os
import re
import socket
import time
from io import FileIO
from typing import Any, get_type_hints

from etils import epath

from codegen_jax.config import RunConfig
from codegen_jax.errors import UserError
from codegen_jax.storage import file_size, is_remote, locked, open_path, write_whole
from codegen_jax.training.records import METRICS, SUMMARY
from codegen_jax.weights.run_folder import CHECKPOINTS, RUN_FILE, complete_checkpoints

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
        UserError: if the folder contains another run or something other than a run, or is in use by a run.
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
        raise UserError(f"output: {folder} exists and does not contain a codegen-jax run; choose another folder")
    if path.exists() and _has_begun(folder):
        existing = read_record(folder)
        _check_data(record["data"], existing["data"], folder)
        _check_skips(record["config"]["data"]["skip_steps"], existing["config"]["data"]["skip_steps"], folder)
        ours, theirs = _flat(record["config"]), _flat(existing["config"])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"output: {folder} contains another run ({name} is {theirs.get(name)} there, {ours.get(name)} "
                    "here); choose another output folder or remove this one"
                )
    if (folder / LOCK).exists() and (lock := _acquire(folder)):
        lock.close()


def read_record(folder: epath.Path) -> dict[str, Any]:
    """Return the contents of run.json: the run's config and data."""
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not record.keys() >= {"config", "data"}:
            raise ValueError("config or data is missing")
        return record
    except ValueError as error:
        raise UserError(f"output: {path} is damaged ({error}); choose another folder") from error


def is_finished(config: RunConfig) -> bool:
    """Whether the output folder contains this exact run with all steps completed."""
    folder = open_path(config.output)
    steps = [int(checkpoint.name) for checkpoint in complete_checkpoints(folder)]
    has_records = (folder / RUN_FILE).exists() and (folder / SUMMARY).exists()
    if config.resume != "auto" or not has_records or not steps or steps[-1] < config.training.steps:
        return False
    return _flat(read_record(folder)["config"]) == _flat(config.to_dict())


def _has_begun(folder: epath.Path) -> bool:
    """Whether a run has completed a step in the folder; a run stopped earlier does not own it."""
    metrics = folder / METRICS
    return bool(complete_checkpoints(folder)) or (metrics.exists() and file_size(metrics) > 0)


def _lock(folder: epath.Path) -> FileIO | None:
    """Lock a folder and write this process's id to the lock file."""
    file = _acquire(folder)
    if file is not None:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    return file


def _acquire(folder: epath.Path) -> FileIO | None:
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
        if "-" in then["tokenizer"]:  # an old hash of a tokenizer's file, such as "bpe-..."; compare the content only
            then["tokenizer"] = now["tokenizer"]
        if now != then == now | {"windows": then["windows"]}:
            rule = f'"windows": "{then["windows"]}"'
            raise UserError(
                f"{field}: manifest.json has windows per {now['windows']}, but {folder} has trained on windows per "
                f"{then['windows']}; set {rule} in manifest.json, or choose another output folder"
            )
        if now != then:
            raise UserError(
                f"{field}: not the token files that {folder} has trained on: {now['tokens']} tokens of tokenizer "
                f"{now['tokenizer']} now, {then['tokens']} of {then['tokenizer']} then; use the original files, or "
                "choose another output folder"
            )


def _check_skips(ours: list[list[int]], theirs: list[list[int]], folder: epath.Path) -> None:
    """Check that skip_steps changes only affect future steps."""
    done = max((int(checkpoint.name) for checkpoint in complete_checkpoints(folder)), default=0)
    for pair in ours + theirs:
        if ours.count(pair) != theirs.count(pair) and pair[0] <= done:
            raise UserError(
                f"data.skip_steps: {pair} would change steps that {folder} has completed (its newest checkpoint is "
                f"step {done}); to go back, move checkpoints {pair[0]} and later out of {folder / CHECKPOINTS}"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config fields that must not change, by dotted name; fields that an earlier version lacked have defaults."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if prefix in FREE_FIELDS or re.fullmatch(r"data\.sources\.[^.]*\.(path|validation)", prefix):
            return
        if isinstance(value, dict):
            for name, child in value.items():
                add(f"{prefix}.{name}" if prefix else name, child)
        else:
            flat[prefix] = value

    add("", _defaults(RunConfig))
    add("", config)
    return flat


def _defaults(section: Any) -> dict[str, Any]:
    """The default values of a config's fields; in nested dicts, like the config."""
    hints, missing, values = get_type_hints(section), dataclasses.MISSING, dict[str, Any]()
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _defaults(hints[field.name])
        elif field.default_factory is not missing:
            values[field.name] = field.default_factory()
        elif field.default is not missing:
            values[field.name] = field.default
    return values
