"""The plot of a run, checked through the figure's lines."""

import numpy as np
import pytest

from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.picture import INTERVALS, abbreviate, draw_run, interval_means
from tests.runs import tiny_run


def logged(steps, **values):
    return [{"step": step, "loss": 9 / step, "learning_rate": 1e-3, "bad_steps": 0} | values for step in steps]


def drawn(lines, tokens_per_step=10):
    """The loss panel's lines as lists of tokens and values, keyed by label; the raw points have the key "raw"."""
    losses, _ = draw_run(lines, tokens_per_step, "a run").axes
    panel = {}
    for line in losses.lines:
        label = line.get_label()
        xy = line.get_xdata(orig=False).tolist(), line.get_ydata(orig=False).tolist()
        panel["raw" if label.startswith("_") else label] = xy
    return panel


def test_losses_and_learning_rates_share_a_logarithmic_token_axis():
    figure = draw_run(logged([1, 2, 4]), 10, "a run")
    losses, rates = figure.axes
    assert losses.get_xscale() == "log" and rates.get_shared_x_axes().joined(losses, rates)
    assert losses.get_title() == "a run" and rates.get_xlabel() == "tokens"
    assert drawn(logged([1, 2, 4]))["raw"] == ([10, 20, 40], [9, 4.5, 2.25])
    assert rates.lines[0].get_xdata().tolist() == [10, 20, 40]


def test_curve_is_the_mean_of_each_interval():
    tokens, values = np.arange(1.0, 100_000), np.random.default_rng(0).normal(3, 1, 99_999)
    mean_tokens, mean_values = interval_means(tokens, values)
    assert INTERVALS / 2 < len(mean_tokens) <= INTERVALS
    last = tokens > 100_000 ** (1 - 1 / INTERVALS)
    assert mean_values[-1] == pytest.approx(values[last].mean(), rel=1e-4)
    assert mean_values[:3].tolist() == values[:3].tolist()  # far apart on the axis, so each has its own interval


def test_nonfinite_losses_are_omitted_and_skipped_steps_are_crosses_at_the_bottom():
    lines = [*logged([1]), *logged([2], loss=None, bad_steps=1), *logged([3], loss=1e9, bad_steps=2), *logged([4])]
    panel = drawn(lines)
    assert panel["raw"] == panel["training loss"] == ([10, 40], [9, 2.25])
    assert panel["skipped step"][0] == [20, 30]


def test_validation_losses_of_a_mixture_are_drawn_if_present():
    values = {"validation_loss": 3.0, "validation_loss/a": 2.0, "validation_loss/b": None}
    panel = drawn([*logged([1, 2]), {"step": 2, **values}])
    assert panel["validation loss"] == ([20], [3.0]) and panel["validation loss, a"] == ([20], [2.0])
    assert panel["validation loss, b"] == ([], [])
    assert not any("validation" in label for label in drawn(logged([1, 2])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lines", [[], logged([1]), logged([1], loss=None, bad_steps=1)])
def test_runs_of_zero_and_one_steps_can_be_drawn(lines, tmp_path):
    draw_run(lines, 10, "a run").savefig(tmp_path / "loss.png")
    assert len(drawn(lines).get("training loss", ([],))[0]) == sum(line["loss"] is not None for line in lines)


@pytest.mark.parametrize(("last", "expected"), [(50, ["10", "20", "50", "100", "200", "500"]), (10**9, None)])
def test_tick_labels_are_dense_for_few_decades_and_sparse_for_many(last, expected):
    axes = draw_run(logged([1, last]), 10, "a run").axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.xaxis.get_majorticklocs() if low <= tick <= high]
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert labels == expected if expected else 4 <= len(labels) <= 10


def test_counts_are_abbreviated():
    assert [abbreviate(n) for n in (7, 512, 20_000, 1.5e6, 2e9, 3e12)] == ["7", "512", "20k", "1.5M", "2B", "3T"]


def test_resumed_run_is_drawn_as_one_run(tmp_path, token_folder):
    for steps in (3, 5):
        train(tiny_run(tmp_path / "run", token_folder, training={"steps": steps}))
    tokens, _ = drawn(read_metrics(tmp_path / "run"), 16 * 32)["raw"]
    assert tokens == [512 * step for step in range(1, 6)]
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")
