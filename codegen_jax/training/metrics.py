"""Where a run's numbers go: metrics.jsonl, samples.jsonl, TensorBoard, Weights & Biases, and a picture of the loss."""

import json
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from codegen_jax.config import RunConfig
from codegen_jax.errors import UserError


class MetricsLog:
    """Appends each step's numbers to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to W&B where it is asked for.

    Lines past `first_step` are those of steps that a stop undid; they are dropped, since the run makes them again.

    Raises:
        UserError: if W&B is asked for and not installed.
    """

    def __init__(self, folder: str | Path, first_step: int, config: RunConfig | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        written = self.path.with_suffix(".tmp")
        written.write_text("".join(json.dumps(line) + "\n" for line in kept))
        written.replace(self.path)  # at once: a kill here must not lose the earlier lines
        self.file = self.path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=first_step + 1)
        self.wandb = start_wandb(config, folder) if config and config.training.wandb_project else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step; in JSON, one that is not finite is null."""
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **plain}) + "\n")
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def write_samples(self, step: int, samples: dict[str, str]) -> None:
        """Completions by prompt."""
        with self.path.with_name("samples.jsonl").open("a") as file:
            for prompt, completion in samples.items():
                file.write(json.dumps({"step": step, "prompt": prompt, "completion": completion}) + "\n")
                self.tensorboard.add_text(prompt, f"```\n{prompt}{completion}\n```", step)

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


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
