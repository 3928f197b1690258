"""The picture of a run: its losses, and below them its learning rate, against the tokens that it has trained on."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from codegen_jax.config import RunConfig
from codegen_jax.training.metrics import read_metrics

INTERVALS = 100  # of equal length on the axis, each with a mean: about the eye's resolution
TICKS = 10  # labels of the axis that there is room for


def save_picture(config: RunConfig, folder: Path) -> None:
    """Draw FOLDER/metrics.jsonl into FOLDER/loss.png."""
    tokens_per_step = config.training.batch_size * config.data.sequence_length
    draw_run(read_metrics(folder), tokens_per_step, config.name).savefig(folder / "loss.png", dpi=120)


def draw_run(lines: list[dict[str, Any]], tokens_per_step: int, title: str) -> Figure:
    """The figure of a run's metrics.

    A pale point is a line of the log; the curve is their mean over each of 100 intervals of the axis, which is
    logarithmic, so that late points, which lie close together, are averaged most. Validation losses are markers, and
    skipped steps crosses at the foot, since their losses may be of any size. What is not finite (null) is left out.

    Args:
        lines: as `read_metrics` gives them; a run that was resumed is one run.
        tokens_per_step: batch_size * sequence_length.
        title: of the figure.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=(3, 1))

    def points(name: str, lines: list[dict[str, Any]] = lines) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and values of the lines that have the value, by tokens."""
        known = [(line["step"] * tokens_per_step, line[name]) for line in lines if line.get(name) is not None]
        tokens, values = zip(*known) if known else ((), ())
        return np.array(tokens, float), np.array(values, float)

    skipped = [line for line in lines if line.get("bad_steps")]
    tokens, values = points("loss", [line for line in lines if not line.get("bad_steps")])
    if tokens.size:
        losses.plot(tokens, values, ".", color="#bcd4ea", markersize=4, markeredgewidth=0)
        # above the validation losses, which would hide it where they are many
        style = {"linewidth": 1.5, "markersize": 4, "zorder": 3}
        losses.plot(*interval_means(tokens, values), ".-", color="C0", label="training loss", **style)
    names = sorted({name for line in lines for name in line if name.startswith("validation_loss")})
    for number, name in enumerate(names, 1):
        label = name.replace("_", " ", 1).replace("/", ", ", 1)
        style = {"marker": "^" if "/" in name else "o", "markersize": 4.5, "markevery": 0.015, "linewidth": 0.8}
        losses.plot(*points(name), color=f"C{number}", label=label, **style)
    if skipped:
        tokens = [line["step"] * tokens_per_step for line in skipped]
        at_the_foot = losses.get_xaxis_transform()  # y from 0, the lower edge, to 1
        losses.plot(tokens, [0.02] * len(tokens), "x", color="black", transform=at_the_foot, label="skipped step")
    rates.plot(*points("learning_rate"), color="C0", linewidth=1.2)

    losses.set(title=title, ylabel="nats per token")
    rates.set(xlabel="tokens", ylabel="learning rate", xscale="log", ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _label_tokens(rates)
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
    if losses.get_legend_handles_labels()[0]:
        losses.legend(loc="upper right")
    return figure


def interval_means(tokens: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean tokens and mean value of each of `INTERVALS` intervals of log(tokens) in which there is a point.

    Args:
        tokens: [N] above 0, rising, N > 0.
        values: [N].

    Returns:
        Two arrays of at most INTERVALS numbers.
    """
    edges = np.geomspace(tokens[0], tokens[-1], INTERVALS + 1)
    interval = np.digitize(tokens, edges[1:-1])
    count = np.bincount(interval)
    sums = (np.bincount(interval, weights=weights) for weights in (tokens, values))
    mean_tokens, mean_values = (total[count > 0] / count[count > 0] for total in sums)
    return mean_tokens, mean_values


def _label_tokens(axes: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade where there are few decades, else at each; labelled 500k, 1M, 2B."""
    low, high = axes.get_xlim()
    few = np.log10(high / low) * 3 < TICKS
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=TICKS))
    axes.xaxis.set_minor_locator(NullLocator() if few else LogLocator(subs=range(2, 10), numticks=TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short(tokens)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short(count: float) -> str:
    """A count in at most a few characters: 500, 20k, 1.5M, 2B, 3T."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"
