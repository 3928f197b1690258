"""The checkpoints of a run: saved beside the steps, tried again where that fails, kept, restored, set aside.

What one is on disk stands in weights/checkpoint_format.py.
"""

import json
import logging
import math
import re
import time
from contextlib import suppress
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from codegen_jax.config import RunConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.distributed import first_alone, largest, say
from codegen_jax.errors import UserError, require
from codegen_jax.storage import open_path, write_whole
from codegen_jax.training.step import TrainState
from codegen_jax.weights.checkpoint_format import (
    CHECKPOINTS,
    DAMAGED,
    OPTIMIZER,
    PARAMS,
    RUN_FILE,
    damaged,
    fingerprint,
    load_run,
    read_item,
    run_record,
    state_items,
    unfinished_checkpoints,
    whole_checkpoints,
)

log = logging.getLogger(__name__)

RETRIES = 3  # of a save that failed, each after one step more

# What may differ between a run and its resumption: where it lies and runs, how long, how often it reports. Token files
# are known by their content, and what skip_steps may change is checked apart.
FREE_FIELDS = {"output", "resume", "mesh", "distributed", "profile", "checkpoint"}
FREE_FIELDS |= {"data.train", "data.validation", "data.skip_steps"}
FREE_FIELDS |= {f"training.{name}" for name in ("steps", "gradient_accumulation_steps", "remat", "log_every")}
FREE_FIELDS |= {f"training.{name}" for name in ("eval_every", "eval_batches", "sample_prompts", "sample_tokens")}
FREE_FIELDS |= {"training.max_bad_steps", "training.wandb_project"}


class Checkpoints:
    """The checkpoints of one run's output folder: the newest few and the one with the best validation loss.

    Raises:
        UserError: if the folder holds another run, or something that is no run.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, data: dict[str, Any]):
        self.folder = open_path(config.output)
        self.record = {"config": config.to_dict(), "data": data}
        self.tokenizer = tokenizer
        require(
            not str(self.folder).startswith("s3://"),
            f"output: {self.folder}: Orbax writes checkpoints to local and mounted folders and to gs://, not to s3://",
        )
        require(
            config.resume == "auto" or not whole_checkpoints(config.output),
            f"resume: never, but {self.folder} holds checkpoints; choose another output folder, or resume auto",
        )
        first_alone(lambda: _claim(self.folder, self.record))
        keep_latest = policies.LatestN(config.checkpoint.keep_latest)
        keep_best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["validation_loss"],
            reverse=True,  # BestN keeps the end of the sorted list: the lowest loss
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        # AnyPreservationPolicy, not best_fn + max_to_keep: the latter deletes the newest when they are not the best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([keep_latest, keep_best]), cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(self.folder / CHECKPOINTS, options=options)
        self.writing = False
        self.retries_left = 0

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Start writing a checkpoint; returns when the state is copied and may change.

        A save that fails is tried again by `check`.
        """
        self.retries_left = RETRIES
        self._start(state, validation_loss)

    def check(self, state: TrainState) -> None:
        """To be called after each step: if a save has failed, try again with the newest state, at last give up."""
        if not self.writing:
            return
        running = largest(self.manager.is_saving_in_progress())
        if not running and self._failed():
            if self.retries_left:
                self.retries_left -= 1
                self._start(state, None)
            else:
                say("a checkpoint could not be written, see above; training goes on to the next")

    def finish(self, state: TrainState) -> None:
        """Wait for the last save, and try again if it fails.

        Raises:
            UserError: if it still fails.
        """
        while self.writing and self._failed():
            require(self.retries_left > 0, f"{self.folder}: the last checkpoint could not be written, see above")
            self.retries_left -= 1
            time.sleep(5)
            self._start(state, None)

    def _start(self, state: TrainState, validation_loss: float | None) -> None:
        record = run_record(**self.record, tokenizer=self.tokenizer, fingerprint=fingerprint(state))
        items = state_items(state.params, _optimizer(state), record)
        metrics = None
        if validation_loss is not None:
            metrics = {"validation_loss": validation_loss if math.isfinite(validation_loss) else math.inf}
        self.writing = True
        self.failure: Exception | None = None
        try:
            self.manager.save(int(state.step), args=items, metrics=metrics)
        except Exception as error:  # as below
            self.failure = error

    def _failed(self) -> bool:
        """Wait for the save that is being written; whether it failed, in any process."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise ValueError, OSError, RuntimeError, ...
            self.failure = self.failure or error
        self.writing = False
        if self.failure:
            reason = re.sub(r"\[.*?\]", "", " ".join(str(self.failure).split()))  # without TensorStore's source lines
            say(f"a checkpoint could not be written: {reason[-200:]}")
        failed = bool(largest(self.failure is not None))
        if failed:
            first_alone(self._remove_unfinished)
        return failed

    def _remove_unfinished(self) -> None:
        for folder in unfinished_checkpoints(self.folder):
            with suppress(OSError):  # threads of the failed save may still write there; the next try finds it empty
                folder.rmtree()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state, on the shardings of `abstract`; None if there is none.

        One that is damaged is set aside with a warning, and the one before it is used.

        Raises:
            UserError: if the only one is damaged; nothing is moved then.
        """
        steps = [int(path.name) for path in whole_checkpoints(self.folder)]
        for step in reversed(steps):
            path, state, failure = self.folder / CHECKPOINTS / str(step), None, None
            try:
                state = _restore(path, abstract)
            except UserError as error:
                failure = error
            if not largest(failure is not None):
                say(f"resuming {self.record['config']['output']} after step {step}")
                return state
            failure = failure or UserError(f"{path}: another process found it damaged")
            if step == steps[0]:
                raise failure
            log.warning(
                f"{failure}; it is moved to {self.folder / DAMAGED}, and step {steps[steps.index(step) - 1]} used"
            )
            first_alone(lambda path=path: self._set_aside(path))
            self.manager.reload()
        return None

    def _set_aside(self, checkpoint: epath.Path) -> None:
        (self.folder / DAMAGED).mkdir(exist_ok=True)
        name = f"{checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        checkpoint.rename(self.folder / DAMAGED / name)

    def close(self) -> None:
        self.manager.close()


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}


def _restore(checkpoint: epath.Path, abstract: TrainState) -> TrainState:
    optimizer = read_item(checkpoint, OPTIMIZER, _optimizer(abstract))
    state = TrainState(params=read_item(checkpoint, PARAMS, abstract.params), **optimizer)
    if fingerprint(state) != load_run(checkpoint).fingerprint:
        raise damaged(checkpoint, ValueError("its content is not what was saved"))
    return state


def _claim(folder: epath.Path, record: dict[str, Any]) -> None:
    """Take an output folder for a run, or go on with the same run's."""
    path = folder / RUN_FILE
    if path.exists():
        try:
            held = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"output: {path} is damaged ({error}); choose another folder") from error
        _check_data(record["data"], held["data"], folder)
        _check_skips(record["config"]["data"]["skip_steps"], held["config"]["data"]["skip_steps"], folder)
        ours, theirs = _flat(record["config"]), _flat(held["config"])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"output: {folder} holds another run ({name} is {theirs.get(name)} there, {ours.get(name)} here); "
                    "choose another output folder or remove it"
                )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output: {folder} exists and is not a run of codegen-jax; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=2) + "\n")


def _check_data(ours: dict[str, Any], theirs: dict[str, Any], folder: epath.Path) -> None:
    """The token files must be those that the run began with, wherever they lie now."""
    for name in sorted(ours.keys() & theirs.keys()):
        field = f"data.sources.{name}" if name else "data.train"
        now, then = ours[name], theirs[name]
        if now != then:
            raise UserError(
                f"{field}: not the token files that {folder} has trained on: {now['tokens']} tokens of "
                f"{now['tokenizer']} now, {then['tokens']} of {then['tokenizer']} then; give it those, or choose "
                "another output folder"
            )


def _check_skips(ours: list[list[int]], theirs: list[list[int]], folder: epath.Path) -> None:
    """What is left out may change for steps to come, not for those done."""
    done = max((int(checkpoint.name) for checkpoint in whole_checkpoints(folder)), default=0)
    for pair in ours + theirs:
        if ours.count(pair) != theirs.count(pair) and pair[0] <= done:
            raise UserError(
                f"data.skip_steps: {pair} would change what {folder} has done: its newest checkpoint is step {done}; "
                f"to go back, move those from step {pair[0]} on out of {folder / CHECKPOINTS}"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config's fields that must stay the same, by dotted name."""
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
