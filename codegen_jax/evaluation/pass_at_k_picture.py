"""Plot a model's evaluation: pass@k against k, with one curve and interval band per temperature."""

import warnings
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter

from codegen_jax.evaluation.judged import Judged, format_temperature
from codegen_jax.evaluation.published import Row
from codegen_jax.evaluation.tally import tally

POINTS = 30  # maximum points per curve, evenly spaced on the log axis
LINE = 70  # characters per title line
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def save_picture(results: Mapping[float, Sequence[Judged]], title: str, paper: Row | None, path: epath.Path) -> None:
    """Write the figure as a PNG to a local or remote path."""
    with warnings.catch_warnings(), path.open("wb") as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # these are drawn as boxes
        draw_pass_at_k(results, title, paper).savefig(file, format="png", dpi=120)


def draw_pass_at_k(results: Mapping[float, Sequence[Judged]], title: str, paper: Row | None) -> Figure:
    """Draw the figure of a model's results.

    A curve runs from k = 1 to the smallest number of samples of any problem; if that is one, it is a single point with
    its interval. The paper's figures are diamonds, hollow if no public source confirms them.

    Args:
        results: results by temperature; at least one.
        title: the figure's title.
        paper: the model's row in the paper, if it has one.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, handles = figure.subplots(), list[Any]()
    tallies = {format_temperature(temperature): tally(judged) for temperature, judged in results.items()}
    published = paper.pass_at_k if paper else {}
    left, right = 0.9, 1.12 * max(*published, *(min(one.samples) for one in tallies.values()), 1)
    for number, (temperature, counted) in enumerate(tallies.items()):
        style = {"color": f"C{number}", "label": f"T = {temperature}", "clip_on": False, "zorder": 3}
        ks = sorted({round(k) for k in np.geomspace(1, min(counted.samples), POINTS)})
        values = np.array(list(counted.pass_at_k(ks).values()))
        low, high = np.array(list(counted.intervals(ks).values())).T
        if ks == [1]:
            shifted = (right / left) ** (0.02 * number)  # shift each further temperature by 2% of the axis
            handles.append(axes.errorbar([shifted], values, [values - low, high - values], fmt="o", capsize=4, **style))
        else:
            handles += axes.plot(ks, values, linewidth=1.5, **style)
            axes.fill_between(ks, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for confirmed in (True, False):
        points = {k: given.percent / 100 for k, given in published.items() if bool(given.sources) == confirmed}
        if paper and points:
            label = f"paper: {paper.family} {paper.size}" + ("" if confirmed else " (unconfirmed)")
            face = "black" if confirmed else "white"
            handles += axes.plot(*zip(*points.items()), "D", color="black", markerfacecolor=face, label=label)

    axes.set_title(fill(title, LINE), parse_math=False)  # it contains a path, which may contain a $
    axes.set(xlabel="k", ylabel="pass@k", xscale="log", xlim=(left, right), ylim=(0, None))
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    axes.grid(alpha=0.25)
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure
