"""The checkpoints of a run: saved beside the steps, tried again where that fails, kept, restored, set aside.

What one is on disk stands in weights/checkpoint_format.py.
"""

import logging
import math
import re
import time
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from codegen_jax.config import RunConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.distributed import first_alone, first_said, is_first, largest, say
from codegen_jax.errors import UserError, require
from codegen_jax.storage import open_path
from codegen_jax.training.claim import claim, require_free
from codegen_jax.training.step import TrainState
from codegen_jax.weights.base import local_bytes
from codegen_jax.weights.checkpoint_format import (
    OPTIMIZER,
    PARAMS,
    Damaged,
    damaged,
    load_run,
    read_item,
    run_record,
    state_items,
)
from codegen_jax.weights.fingerprint import fingerprints
from codegen_jax.weights.generation_config import GenerationConfig
from codegen_jax.weights.run_folder import CHECKPOINTS, DAMAGED, unfinished_checkpoints, whole_checkpoints

log = logging.getLogger(__name__)

RETRIES = 3  # of a save that failed, each after one step more
ANNOUNCED_BYTES = 1e9  # a restore of more than this is announced, since it takes a while
PAUSES = (1, 5, 25)  # seconds before a checkpoint that could not be read is read again


def check_output(config: RunConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` for an output folder that `Checkpoints` would not take; nothing is written."""
    folder = open_path(config.output)
    require(
        not str(folder).startswith("s3://"),
        f"output: {folder}: Orbax writes checkpoints to local and mounted folders and to gs://, not to s3://",
    )
    require(
        config.resume == "auto" or not whole_checkpoints(config.output),
        f"resume: never, but {folder} holds checkpoints; choose another output folder, or resume auto",
    )
    first_alone(lambda: require_free(folder, {"config": config.to_dict(), "data": data}))


class Checkpoints:
    """The checkpoints of one run's output folder: the newest few and the one with the best validation loss.

    Args:
        config, data: of the run.
        tokenizer: that made the data.
        generation_config: of the model that the run starts from; one that is resumed keeps its own.

    Raises:
        UserError: if the folder holds another run, or something that is no run.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        data: dict[str, Any],
        generation_config: GenerationConfig | None = None,
    ):
        self.folder = open_path(config.output)
        self.record = {"config": config.to_dict(), "data": data}
        self.tokenizer, self.generation_config = tokenizer, generation_config or {}
        check_output(config, data)
        self.lock = None
        first_alone(self._claim)
        keep_latest = policies.LatestN(config.checkpoint.keep_latest)
        loss_of = lambda metrics: metrics["validation_loss"]
        keep_best = policies.BestN(
            get_metric_fn=loss_of,
            reverse=True,  # BestN keeps the end of the sorted list: the lowest loss
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        # The policy says what is kept: best_fn with max_to_keep would delete the newest when they are not the best.
        # best_fn makes Orbax write the loss beside the arrays, where a resumed run finds it.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([keep_latest, keep_best]),
            best_fn=loss_of,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(self.folder / CHECKPOINTS, options=options)
        self.writing = False
        self.retries_left = 0

    def _claim(self) -> None:
        self.lock = claim(self.folder, self.record)

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
        said = (self.tokenizer, self.generation_config)
        record = run_record(self.record["config"], self.record["data"], *said, fingerprints(state))
        items = state_items(state.params, _optimizer(state), record)
        is_known = validation_loss is not None and math.isfinite(validation_loss)
        metrics = {"validation_loss": validation_loss} if is_known else None
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
            say(f"a checkpoint could not be written: {reason.rpartition('Error ')[2].strip()}")  # the innermost of them
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
            UserError: if the only one is damaged, or one can't be read; nothing is moved then.
        """
        steps = [int(path.name) for path in whole_checkpoints(self.folder)]
        for step in reversed(steps):
            path = self.folder / CHECKPOINTS / str(step)
            size = local_bytes(abstract)
            if size > ANNOUNCED_BYTES:  # Orbax reports no progress
                say(f"restoring {size / 1e9:.1f} GB{' per process' * (jax.process_count() > 1)} from {path}")
            found = _read_twice(path, abstract)
            if not isinstance(found, Damaged):
                state, self.generation_config = found.state, found.generation_config
                self.tokenizer = self.tokenizer.with_metadata_of(found.tokenizer)
                say(f"resuming {self.record['config']['output']} after step {step}")
                return state
            if step == steps[0]:
                raise found
            log.warning(
                f"{found}; it is moved to {self.folder / DAMAGED}, and step {steps[steps.index(step) - 1]} used"
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
        if self.lock is not None:
            self.lock.close()


class Restored(NamedTuple):
    """What a run goes on from."""

    state: TrainState
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}


def _read_twice(checkpoint: epath.Path, abstract: TrainState) -> Restored | Damaged:
    """What it holds; or what is damaged, if a second read after a pause finds damage again, in any of the processes.

    Raises:
        UserError: if it can't be read for another reason, and that does not pass.
    """
    found_damage = False
    for pause in (*PAUSES, None):
        found, failure = _read(checkpoint, abstract)
        again = isinstance(failure, Damaged) and found_damage
        worst = largest(0 if failure is None else 1 if again else 2)
        if worst == 0:
            assert found is not None
            return found
        text = first_said(str(failure or ""))
        if worst == 1:
            return Damaged(text)
        found_damage = isinstance(failure, Damaged)
        if pause is None:
            raise UserError(text)
        if is_first():
            log.warning(f"{text}; reading again in {pause} s")
        time.sleep(pause)
    raise AssertionError("the last pause is None")


def _read(checkpoint: epath.Path, abstract: TrainState) -> tuple[Restored | None, UserError | None]:
    """What it holds, or why this process or its fingerprints say no; a process that fails to read does so alone."""
    state, run, failure = None, None, None
    try:
        run = load_run(checkpoint)
        optimizer = read_item(checkpoint, OPTIMIZER, _optimizer(abstract))
        state = TrainState(params=read_item(checkpoint, PARAMS, abstract.params), **optimizer)
    except UserError as error:
        failure = error
    if largest(failure is not None) or state is None or run is None:
        return None, failure
    found = Restored(state, run.tokenizer, run.generation_config)
    if run.fingerprints is None:
        log.warning(f"{checkpoint}: written by an older version, without fingerprints; its bits are not checked")
        return found, None
    changed = [name for name, value in fingerprints(state).items() if value != run.fingerprints.get(name)]
    return (None, damaged(checkpoint, f"{changed[0]} is not what was saved")) if changed else (found, None)
