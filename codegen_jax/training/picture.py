"""The plot of a run: losses, and below them the learning rate, against tokens trained on."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from codegen_jax.config import RunConfig
from codegen_jax.training.metrics import read_metrics

INTERVALS = 100  # intervals of equal length on the axis, averaged separately: about the eye's resolution
TICKS = 10  # maximum number of tick labels on the axis


def save_picture(config: RunConfig, folder: Path) -> None:
    """Plot FOLDER/metrics.jsonl to FOLDER/loss.png."""
    tokens_per_step = config.training.batch_size * config.data.sequence_length
    draw_run(read_metrics(folder), tokens_per_step, config.name).savefig(folder / "loss.png", dpi=120)


def draw_run(lines: list[dict[str, Any]], tokens_per_step: int, title: str) -> Figure:
    """Plot a run's metrics.

    Pale points are log lines; the curve is their mean in each of 100 intervals. The axis is logarithmic, so late points
    lie close together and are averaged most. Validation losses have markers. Skipped steps are crosses at the bottom,
    because their losses may be arbitrarily large. Values that are not finite (null) are omitted.

    Args:
        lines: lines from `read_metrics`; a resumed run is drawn as one run.
        tokens_per_step: batch_size * sequence_length.
        title: title of the figure.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=(3, 1))

    def points(name: str, lines: list[dict[str, Any]] = lines) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and values of the lines that have this metric, in order."""
        known = [(line["step"] * tokens_per_step, line[name]) for line in lines if line.get(name) is not None]
        tokens, values = zip(*known) if known else ((), ())
        return np.array(tokens, float), np.array(values, float)

    skipped = [line for line in lines if line.get("bad_steps")]
    tokens, values = points("loss", [line for line in lines if not line.get("bad_steps")])
    if tokens.size:
        losses.plot(tokens, values, ".", color="#bcd4ea", markersize=4, markeredgewidth=0)
        # above the validation losses: if there are many, they would hide it
        style = {"linewidth": 1.5, "markersize": 4, "zorder": 3}
        losses.plot(*interval_means(tokens, values), ".-", color="C0", label="training loss", **style)
    names = sorted({name for line in lines for name in line if name.startswith("validation_loss")})
    for number, name in enumerate(names, 1):
        label = name.replace("_", " ", 1).replace("/", ", ", 1)
        style = {"marker": "^" if "/" in name else "o", "markersize": 4.5, "markevery": 0.015, "linewidth": 0.8}
        losses.plot(*points(name), color=f"C{number}", label=label, **style)
    if skipped:
        tokens = [line["step"] * tokens_per_step for line in skipped]
        axes_fraction = losses.get_xaxis_transform()  # y from 0 (bottom) to 1 (top)
        losses.plot(tokens, [0.02] * len(tokens), "x", color="black", transform=axes_fraction, label="skipped step")
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
    """Mean tokens and mean value in each of `INTERVALS` equal intervals of log(tokens) that contains a point.

    Args:
        tokens: [N], positive and increasing; N > 0.
        values: [N].

    Returns:
        Mean tokens and mean values, at most INTERVALS each.
    """
    edges = np.geomspace(tokens[0], tokens[-1], INTERVALS + 1)
    interval = np.digitize(tokens, edges[1:-1])
    count = np.bincount(interval)
    sums = (np.bincount(interval, weights=weights) for weights in (tokens, values))
    mean_tokens, mean_values = (total[count > 0] / count[count > 0] for total in sums)
    return mean_tokens, mean_values


def _label_tokens(axes: Any) -> None:
    """Set ticks at 1, 2 and 5 in each decade if there are few decades, else one per decade; labels are 500k, 1M, 2B."""
    low, high = axes.get_xlim()
    few = np.log10(high / low) * 3 < TICKS
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=TICKS))
    axes.xaxis.set_minor_locator(NullLocator() if few else LogLocator(subs=range(2, 10), numticks=TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: abbreviate(tokens)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def abbreviate(count: float) -> str:
    """Abbreviate a count: 500, 20k, 1.5M, 2B, 3T."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"
