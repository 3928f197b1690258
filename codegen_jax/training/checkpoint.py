"""A run's checkpoints: save in the background, retry failed saves, restore, set damaged ones aside.

weights/checkpoint_format.py describes the format on disk.
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
from codegen_jax.distributed import first_nonempty, is_first, log_once, max_over_processes, run_on_first
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
from codegen_jax.weights.run_folder import CHECKPOINTS, DAMAGED, complete_checkpoints, unfinished_checkpoints

log = logging.getLogger(__name__)

RETRIES = 3  # retries of a failed save, one after each further step
ANNOUNCED_BYTES = 1e9  # a larger restore is announced, since it takes a while
PAUSES = (1, 5, 25)  # seconds to wait before each further attempt to read a checkpoint


def check_output(config: RunConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` for an output folder that `Checkpoints` would refuse; write nothing."""
    folder = open_path(config.output)
    require(
        not str(folder).startswith("s3://"),
        f"output: {folder}: Orbax cannot write checkpoints to s3://; use gs://, a local folder or a mounted one",
    )
    require(
        config.resume == "auto" or not complete_checkpoints(config.output),
        f"resume: never, but {folder} already has checkpoints; choose another output folder, or set resume to auto",
    )
    run_on_first(lambda: require_free(folder, {"config": config.to_dict(), "data": data}))


class Checkpoints:
    """The checkpoints in a run's output folder: the newest few and the one with the best validation loss.

    Args:
        config: the run's config.
        tokenizer: the tokenizer of the token files.
        data: identities of the token files, by source name.
        generation_config: generation config of the model that the run starts from; a resumed run keeps its own.
        adapter: what the checkpoints record about an adapter and the weights below it; see `Run`.

    Raises:
        UserError: if the folder contains another run, or something other than a run.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        data: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        adapter: dict[str, Any] | None = None,
    ):
        self.folder = open_path(config.output)
        self.adapter = adapter
        self.record = {"config": config.to_dict(), "data": data}
        self.tokenizer, self.generation_config = tokenizer, generation_config or {}
        check_output(config, data)
        self.lock = None
        run_on_first(self._claim)
        keep_latest = policies.LatestN(config.checkpoint.keep_latest)
        loss_of = lambda metrics: metrics["validation_loss"]
        keep_best = policies.BestN(
            get_metric_fn=loss_of,
            reverse=True,  # BestN keeps the end of the sorted list, here the lowest loss
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        # The policy decides what is kept: best_fn with max_to_keep would delete the newest unless they are the best.
        # best_fn makes Orbax store the loss next to the arrays, where a resumed run finds it.
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
        """Start writing a checkpoint; return once the state is copied and may change. `check` retries a failed save."""
        self.retries_left = RETRIES
        self._start(state, validation_loss)

    def check(self, state: TrainState) -> None:
        """Retry a failed save with the newest state, up to RETRIES times; call it after each step without a save."""
        if not self.writing:
            return
        running = max_over_processes(self.manager.is_saving_in_progress())
        if not running and self._failed():
            if self.retries_left:
                self.retries_left -= 1
                self._start(state, None)
            else:
                log_once("a checkpoint could not be written, see above; training continues without it")

    def finish(self, state: TrainState) -> None:
        """Wait for the last save, and retry it if it fails.

        Raises:
            UserError: if all retries fail.
        """
        while self.writing and self._failed():
            require(self.retries_left > 0, f"{self.folder}: the last checkpoint could not be written, see above")
            self.retries_left -= 1
            time.sleep(5)
            self._start(state, None)

    def _start(self, state: TrainState, validation_loss: float | None) -> None:
        config, data = self.record["config"], self.record["data"]
        trained = state._replace(frozen=None)
        record = run_record(config, data, self.tokenizer, self.generation_config, fingerprints(trained), self.adapter)
        items = state_items(state.params, _optimizer(state), record)
        is_known = validation_loss is not None and math.isfinite(validation_loss)
        metrics = {"validation_loss": validation_loss} if is_known else None
        self.writing = True
        self.failure: Exception | None = None
        try:
            self.manager.save(int(state.step), args=items, metrics=metrics)
        except Exception as error:  # `_failed` lists the types
            self.failure = error

    def _failed(self) -> bool:
        """Wait for the save in progress; return whether it failed in any process."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise ValueError, OSError, RuntimeError, ...
            self.failure = self.failure or error
        self.writing = False
        if self.failure:
            reason = re.sub(r"\[.*?\]", "", " ".join(str(self.failure).split()))  # without TensorStore's source lines
            log_once(f"a checkpoint could not be written: {reason.rpartition('Error ')[2].strip()}")  # innermost error
        failed = bool(max_over_processes(self.failure is not None))
        if failed:
            run_on_first(self._remove_unfinished)
        return failed

    def _remove_unfinished(self) -> None:
        for folder in unfinished_checkpoints(self.folder):
            with suppress(OSError):  # the failed save's threads may still be writing; the next retry cleans up again
                folder.rmtree()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state, with the shardings of `abstract`, but no frozen weights; None if there are no checkpoints.

        A damaged checkpoint is set aside with a warning, and the previous one is used.

        Raises:
            UserError: if the only checkpoint left is damaged, or one can't be read; that one is not moved. Also if the
                weights below an adapter are not those with which it was trained.
        """
        abstract = abstract._replace(frozen=None)
        steps = [int(path.name) for path in complete_checkpoints(self.folder)]
        for step in reversed(steps):
            path = self.folder / CHECKPOINTS / str(step)
            size = local_bytes(abstract)
            if size > ANNOUNCED_BYTES:  # Orbax reports no progress
                log_once(f"restoring {size / 1e9:.1f} GB{' per process' * (jax.process_count() > 1)} from {path}")
            found = _read_with_retries(path, abstract)
            if not isinstance(found, Damaged):
                require(
                    found.adapter == self.adapter,
                    f"init_from: the model has other weights or another tokenizer than when {self.folder} was trained; "
                    "give the same model, or choose another output folder",
                )
                state, self.generation_config = found.state, found.generation_config
                self.tokenizer = self.tokenizer.with_metadata_of(found.tokenizer)
                log_once(f"resuming {self.record['config']['output']} after step {step}")
                return state
            if step == steps[0]:
                raise found
            previous = steps[steps.index(step) - 1]
            log.warning(f"{found}; moving it to {self.folder / DAMAGED} and resuming from step {previous} instead")
            run_on_first(lambda path=path: self._set_aside(path))
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
    """The contents of a checkpoint that a run resumes from."""

    state: TrainState
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig
    adapter: dict[str, Any] | None


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}


def _read_with_retries(checkpoint: epath.Path, abstract: TrainState) -> Restored | Damaged:
    """Read a checkpoint; return a `Damaged` error if a second read confirms damage in any process.

    Raises:
        UserError: if it can't be read for another reason, even after retries.
    """
    found_damage = False
    for pause in (*PAUSES, None):
        found, failure = _read(checkpoint, abstract)
        confirmed = isinstance(failure, Damaged) and found_damage
        worst = max_over_processes(0 if failure is None else 1 if confirmed else 2)
        if worst == 0:
            assert found is not None
            return found
        text = first_nonempty(str(failure or ""))
        if worst == 1:
            return Damaged(text)
        found_damage = isinstance(failure, Damaged)
        if pause is None:
            raise UserError(text)
        if is_first():
            log.warning(f"{text}; retrying in {pause} s")
        time.sleep(pause)
    raise AssertionError("the last pause is None")


def _read(checkpoint: epath.Path, abstract: TrainState) -> tuple[Restored | None, UserError | None]:
    """Read a checkpoint once. Returns (contents, None), (None, this process's error) or (None, None).

    (None, None) means that only other processes failed. Fingerprints need all processes, so they are not checked then.
    """
    state, run, failure = None, None, None
    try:
        run = load_run(checkpoint)
        optimizer = read_item(checkpoint, OPTIMIZER, _optimizer(abstract))
        state = TrainState(params=read_item(checkpoint, PARAMS, abstract.params), **optimizer)
    except UserError as error:
        failure = error
    if max_over_processes(failure is not None) or state is None or run is None:
        return None, failure
    found = Restored(state, run.tokenizer, run.generation_config, run.adapter)
    if run.fingerprints is None:
        log.warning(f"{checkpoint}: written by an older version without fingerprints; its content is not verified")
        return found, None
    changed = [name for name, value in fingerprints(state).items() if value != run.fingerprints.get(name)]
    return (None, damaged(checkpoint, f"{changed[0]} differs from what was saved")) if changed else (found, None)
