"""Checkpoints that stand alone: parameters, optimizer, step, config, tokenizer and metrics in one Orbax transaction.

    OUTPUT/run.json                       the run's config and data, to recognise it
    OUTPUT/checkpoints/STEP/params        float32 parameters
    OUTPUT/checkpoints/STEP/optimizer     step and optax's state
    OUTPUT/checkpoints/STEP/run           config, data and tokenizer files, as JSON
    OUTPUT/checkpoints/STEP/metrics       validation loss

A folder without `_CHECKPOINT_METADATA` was cut short while it was written and does not count.
"""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from codegen_jax.config import RunConfig
from codegen_jax.conversion.native import damaged, run_record, save_args, whole_checkpoints
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError
from codegen_jax.training.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save and warns of its own defaults

# What may differ between a run and its resumption: where it lies and runs, how long, how often it reports. Token files
# are known by their content, and what skip_steps may change is checked apart.
FREE_FIELDS = {"output", "mesh", "checkpoint", "data.train", "data.validation", "data.skip_steps"} | {
    f"training.{name}"
    for name in ("steps", "gradient_accumulation_steps", "remat", "log_every", "eval_every", "eval_batches")
}


class Checkpoints:
    """The checkpoints of one run's output folder: the newest few and the one with the best validation loss.

    Raises:
        UserError: if the folder holds another run, or something that is no run.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, data: dict[str, Any]):
        self.folder = Path(config.output).absolute()
        self.record = {"config": config.to_dict(), "data": data}
        self.tokenizer = tokenizer
        _claim(self.folder, self.record)
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
        self.manager = ocp.CheckpointManager(self.folder / "checkpoints", options=options)

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, validation_loss: float | None) -> None:
        """Start writing a checkpoint; returns when the state is copied and may change."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, save_args(state.params)),  # pyright: ignore[reportCallIssue]
            optimizer=ocp.args.StandardSave(_optimizer(state)),  # pyright: ignore[reportCallIssue]
            run=ocp.args.JsonSave(run_record(**self.record, tokenizer=self.tokenizer)),  # pyright: ignore[reportCallIssue]
        )
        metrics = None
        if validation_loss is not None:
            metrics = {"validation_loss": validation_loss if math.isfinite(validation_loss) else math.inf}
        self.manager.save(int(state.step), args=items, metrics=metrics)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at a step, on the shardings of `abstract`.

        Raises:
            UserError: if the checkpoint is damaged; nothing is deleted.
        """
        folder = self.folder / "checkpoints" / str(step)
        params = _restore(folder, "params", abstract.params)
        return TrainState(params=params, **_restore(folder, "optimizer", _optimizer(abstract)))

    def close(self) -> None:
        """Wait for the last save."""
        self.manager.wait_until_finished()
        self.manager.close()


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _restore(checkpoint: Path, item: str, abstract: Any) -> Any:
    try:
        return ocp.StandardCheckpointer().restore(checkpoint / item, abstract)
    except Exception as error:  # TensorStore and Orbax raise ValueError, FileNotFoundError, KeyError, RuntimeError, ...
        raise damaged(checkpoint / item, error) from error


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Take an output folder for a run, or go on with the same run's."""
    path = folder / "run.json"
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
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(record, indent=2) + "\n")
    written.replace(path)  # at once, so that a kill leaves the old record or the new one


def _check_data(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
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


def _check_skips(ours: list[list[int]], theirs: list[list[int]], folder: Path) -> None:
    """What is left out may change for steps to come, not for those done."""
    done = max((int(checkpoint.name) for checkpoint in whole_checkpoints(folder)), default=0)
    for pair in ours + theirs:
        if ours.count(pair) != theirs.count(pair) and pair[0] <= done:
            raise UserError(
                f"data.skip_steps: {pair} would change what {folder} has done: its newest checkpoint is step {done}; "
                f"to go back, move those from step {pair[0]} on out of {folder / 'checkpoints'}"
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
