"""Where a run's numbers go: metrics.jsonl, samples.jsonl, TensorBoard, Weights & Biases, and a picture of the loss."""

import json
import math
import time
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar, text

from codegen_jax.config import RunConfig
from codegen_jax.errors import UserError
from codegen_jax.storage import write_whole
from codegen_jax.training.records import forgiven


class MetricsLog:
    """Appends each step's numbers to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to W&B where it is asked for.

    Lines past `first_step` are those of steps that a stop undid; they are dropped, since the run makes them again.

    Raises:
        UserError: if W&B is asked for and not installed.
    """

    def __init__(self, folder: str | Path, first_step: int, config: RunConfig | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        write_whole(epath.Path(self.path), "".join(json.dumps(line) + "\n" for line in kept))
        # buffers keep what could not be written and try again with the next line
        self.file = self.path.open("a", buffering=1)
        self.samples = self.path.with_name("samples.jsonl").open("a", buffering=1)
        # not SummaryWriter, whose thread dies of a full disk and leaves a queue that blocks
        (Path(folder) / "tensorboard").mkdir(exist_ok=True)
        self.tensorboard = EventsWriter(str(Path(folder) / "tensorboard/events"))
        self._event(first_step + 1, session_log=SessionLog(status=SessionLog.START))  # hides the steps undone
        self.wandb = start_wandb(config, folder) if config and config.training.wandb_project else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step; in JSON, one that is not finite is null."""
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with forgiven(self.path):
            self.file.write(json.dumps({"step": step, **plain}) + "\n")
        with forgiven(self.path.with_name("tensorboard")):
            for name, value in values.items():
                self._event(step, summary=scalar(name, value))
            self.tensorboard.flush()
        if self.wandb:
            self.wandb.log(values, step=step)

    def write_samples(self, step: int, samples: dict[str, str]) -> None:
        """Completions by prompt."""
        with forgiven(self.path.with_name("samples.jsonl")):
            for prompt, completion in samples.items():
                self.samples.write(json.dumps({"step": step, "prompt": prompt, "completion": completion}) + "\n")
                self._event(step, summary=text(prompt, f"```\n{prompt}{completion}\n```"))

    def close(self) -> None:
        for file in (self.file, self.samples, self.tensorboard):
            with forgiven(self.path.parent):
                file.close()
        if self.wandb:
            self.wandb.finish()

    def _event(self, step: int, **content: Any) -> None:
        self.tensorboard.write_event(Event(wall_time=time.time(), step=step, **content))


def start_wandb(config: RunConfig, folder: str | Path) -> Any:
    """A run of Weights & Biases that goes on where an earlier launch of the same output left off."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("training.wandb_project: wandb is not installed; pip install wandb, or leave it out") from error
    name = Path(config.output).name
    return wandb.init(
        project=config.training.wandb_project, id=name, name=name, resume="allow", dir=folder, config=config.to_dict()
    )


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; a last line that a kill cut short does not count."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def plot_loss(folder: str | Path, title: str) -> Path:
    """Draw the run's training and validation loss into FOLDER/loss.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(folder)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = sorted({name for line in lines for name in line if name.startswith("validation_loss")})
    for name, marker in (("loss", ""), *((name, "o") for name in names)):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, label=name.replace("_", " "), marker=marker, markersize=4, linewidth=1)
    axes.set(xlabel="step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(folder) / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
