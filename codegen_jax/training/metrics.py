"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a picture of the loss."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsLog:
    """Appends each step's numbers to OUTPUT/metrics.jsonl and OUTPUT/tensorboard.

    Lines past `first_step` are those of steps that a stop undid; they are dropped, since the run makes them again.
    """

    def __init__(self, output: str | Path, first_step: int):
        self.path = Path(output) / "metrics.jsonl"
        kept = [line for line in read_metrics(output) if line["step"] <= first_step]
        written = self.path.with_suffix(".tmp")
        written.write_text("".join(json.dumps(line) + "\n" for line in kept))
        written.replace(self.path)  # at once: a kill here must not lose the earlier lines
        self.file = self.path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(Path(output) / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()


def read_metrics(output: str | Path) -> list[dict[str, float]]:
    """The whole lines of a run's metrics.jsonl; a last line that a kill cut short does not count."""
    path = Path(output) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def plot_loss(output: str | Path) -> Path:
    """Draw the run's training and validation loss into OUTPUT/loss.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(output)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = sorted({name for line in lines for name in line if name.startswith("validation_loss")})
    for name, marker in (("loss", ""), *((name, "o") for name in names)):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, label=name.replace("_", " "), marker=marker, markersize=4, linewidth=1)
    axes.set(xlabel="step", ylabel="nats per token", title=Path(output).absolute().name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(output) / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
