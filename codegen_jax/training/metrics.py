"""Write a run's metrics and samples to metrics.jsonl, samples.jsonl, TensorBoard and Weights & Biases."""

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from etils import epath

from codegen_jax.config import RunConfig
from codegen_jax.errors import require
from codegen_jax.storage import write_whole
from codegen_jax.strict_json import dumps, loads
from codegen_jax.training.records import METRICS, SAMPLES, forgiven

if TYPE_CHECKING:
    from codegen_jax.training.tensorboard_log import TensorBoardLog


class MetricsLog:
    """Appends metrics to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to W&B if training.wandb_project is set.

    Existing lines after `first_step` are dropped: those steps were lost when the run stopped, and it repeats them.
    """

    def __init__(self, folder: str | Path, first_step: int, config: RunConfig | None = None):
        self.path = Path(folder) / METRICS
        self.file = open_for_append(self.path, first_step)
        self.samples = open_for_append(Path(folder) / SAMPLES, first_step)
        self.first_step = first_step
        self.wandb = start_wandb(config, folder) if config and config.training.wandb_project else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a step's metrics. Those that are not finite are null in JSON and omitted from TensorBoard."""
        with forgiven(self.path):
            self.file.write(dumps({"step": step, **values}) + "\n")
        with forgiven(self.path.with_name("tensorboard")):
            self.tensorboard.scalars(step, values)
        if self.wandb:
            self.wandb.log(values, step=step)

    def write_samples(self, step: int, samples: dict[str, str]) -> None:
        """Write a step's completions, keyed by prompt."""
        with forgiven(self.path.with_name(SAMPLES)):
            for prompt, completion in samples.items():
                self.samples.write(dumps({"step": step, "prompt": prompt, "completion": completion}) + "\n")
                self.tensorboard.text(step, prompt, f"```\n{prompt}{completion}\n```")

    def close(self) -> None:
        opened = [self.tensorboard] if "tensorboard" in vars(self) else []
        for file in (self.file, self.samples, *opened):
            with forgiven(self.path.parent):
                file.close()
        if self.wandb:
            self.wandb.finish()

    @cached_property
    def tensorboard(self) -> "TensorBoardLog":
        # imported after the first step: tensorboardX imports torch where it is installed, which takes a second
        from codegen_jax.training.tensorboard_log import TensorBoardLog

        return TensorBoardLog(self.path.with_name("tensorboard"), self.first_step)


def check_wandb(config: RunConfig) -> None:
    """Raise `UserError` if a run needs W&B but it is not installed."""
    require(
        config.training.wandb_project is None or find_spec("wandb") is not None,
        "training.wandb_project: wandb is not installed; pip install wandb, or unset this field",
    )


def start_wandb(config: RunConfig, folder: str | Path) -> Any:
    """Start or resume the W&B run of this output folder."""
    import wandb  # pyright: ignore[reportMissingImports]

    settings = {"id": config.name, "name": config.name, "resume": "allow", "config": config.to_dict()}
    return wandb.init(project=config.training.wandb_project, dir=folder, **settings)


def open_for_append(path: Path, first_step: int) -> TextIO:
    """Drop the lines of steps after `first_step` from a JSON-lines file, and open it for appending."""
    kept = [line for line in read_lines(path) if line["step"] <= first_step]
    write_whole(epath.Path(path), "".join(dumps(line) + "\n" for line in kept))
    return path.open("a", buffering=1)  # unwritten text stays buffered and is retried with the next line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; empty if the file does not exist. A truncated last line is ignored."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [loads(line) for line in lines if line.endswith("}\n")]


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """A run's metrics: one dict per line, with the step and its metrics."""
    return read_lines(Path(folder) / METRICS)
