"""Where a run's numbers go: metrics.jsonl, samples.jsonl, TensorBoard and Weights & Biases."""

import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar, text

from codegen_jax.config import RunConfig
from codegen_jax.errors import require
from codegen_jax.storage import write_whole
from codegen_jax.strict_json import dumps, loads
from codegen_jax.training.records import METRICS, SAMPLES, forgiven


class MetricsLog:
    """Appends each step's numbers to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to W&B where it is asked for.

    Lines past `first_step` are those of steps that a stop undid; they are dropped, since the run makes them again.
    """

    def __init__(self, folder: str | Path, first_step: int, config: RunConfig | None = None):
        self.path = Path(folder) / METRICS
        self.file = go_on_with(self.path, first_step)
        self.samples = go_on_with(Path(folder) / SAMPLES, first_step)
        # not SummaryWriter, whose thread dies of a full disk and leaves a queue that blocks
        (Path(folder) / "tensorboard").mkdir(exist_ok=True)
        self.tensorboard = EventsWriter(str(Path(folder) / "tensorboard/events"))
        self._event(first_step + 1, session_log=SessionLog(status=SessionLog.START))  # hides the steps undone
        self.wandb = start_wandb(config, folder) if config and config.training.wandb_project else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step; one that is not finite is null in JSON and is not given to TensorBoard."""
        with forgiven(self.path):
            self.file.write(dumps({"step": step, **values}) + "\n")
        with forgiven(self.path.with_name("tensorboard")):
            for name, value in values.items():
                if math.isfinite(value):  # of one that is not finite tensorboardX warns, at each step
                    self._event(step, summary=scalar(name, value))
            self.tensorboard.flush()
        if self.wandb:
            self.wandb.log(values, step=step)

    def write_samples(self, step: int, samples: dict[str, str]) -> None:
        """Completions by prompt."""
        with forgiven(self.path.with_name(SAMPLES)):
            for prompt, completion in samples.items():
                self.samples.write(dumps({"step": step, "prompt": prompt, "completion": completion}) + "\n")
                self._event(step, summary=text(prompt, f"```\n{prompt}{completion}\n```"))

    def close(self) -> None:
        for file in (self.file, self.samples, self.tensorboard):
            with forgiven(self.path.parent):
                file.close()
        if self.wandb:
            self.wandb.finish()

    def _event(self, step: int, **content: Any) -> None:
        self.tensorboard.write_event(Event(wall_time=time.time(), step=step, **content))


def check_wandb(config: RunConfig) -> None:
    """Refuse a run that asks for W&B where it is not installed."""
    require(
        config.training.wandb_project is None or find_spec("wandb") is not None,
        "training.wandb_project: wandb is not installed; pip install wandb, or leave it out",
    )


def start_wandb(config: RunConfig, folder: str | Path) -> Any:
    """A run of Weights & Biases that goes on where an earlier launch of the same output left off."""
    import wandb  # pyright: ignore[reportMissingImports]

    about = {"id": config.name, "name": config.name, "resume": "allow", "config": config.to_dict()}
    return wandb.init(project=config.training.wandb_project, dir=folder, **about)


def go_on_with(path: Path, first_step: int) -> TextIO:
    """Open a file of JSON lines to append to, without its lines of later steps."""
    kept = [line for line in read_lines(path) if line["step"] <= first_step]
    write_whole(epath.Path(path), "".join(dumps(line) + "\n" for line in kept))
    return path.open("a", buffering=1)  # what could not be written stays in a buffer and is tried with the next line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines, if there is one; a last line that a kill cut short does not count."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [loads(line) for line in lines if line.endswith("}\n")]


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """A run's metrics, a dict a line: its step and that step's numbers."""
    return read_lines(Path(folder) / METRICS)
