"""The pass@k plot: check the values drawn, read from the figure's lines."""

import pytest
from etils import epath
from matplotlib.colors import to_rgba

from codegen_jax.evaluation.judged import Judged
from codegen_jax.evaluation.pass_at_k_picture import draw_pass_at_k, save_picture
from codegen_jax.evaluation.published import PAPER
from codegen_jax.evaluation.tally import tally
from tests.evaluation.test_model_report import drawn

MULTI_2B = next(row for row in PAPER if row.name == "CodeGen-Multi 2B")


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_a_curve_covers_all_k_with_the_intervals_as_a_band():
    results = {0.2: drawn(50, 1), 0.8: drawn(200, 2)}
    figure = draw_pass_at_k(results, "a $model$", None)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_title() == "a $model$" and not axes.title.get_parse_math()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["T = 0.2", "T = 0.8"]
    for (temperature, judged), band in zip(results.items(), axes.collections):
        ks, values = lines(figure)[f"T = {temperature}"].get_data()
        max_k = len(judged) // 12
        assert ks[0] == 1 and ks[-1] == max_k and len(ks) > 15 and axes.get_xlim()[1] > max_k
        assert list(values) == list(tally(judged).pass_at_k([int(k) for k in ks]).values())
        low, high = tally(judged).intervals([max_k])[str(max_k)]
        edge = {round(float(y), 6) for x, y in band.get_paths()[0].vertices if x == max_k}
        assert edge == {round(low, 6), round(high, 6)}


def test_greedy_samples_are_a_point_with_its_interval_next_to_the_papers_results():
    judged = [one._replace(outcome="failed") for one in drawn(1, 1)[:-1]] + [Judged("A/0", 0, "", "passed", "")]
    figure = draw_pass_at_k({0.0: judged}, "", MULTI_2B)
    axes = figure.axes[0]
    (errorbar,) = axes.containers
    assert errorbar.lines[0].get_xydata().tolist() == [[1, 1 / 12]]
    low, high = errorbar.lines[2][0].get_segments()[0][:, 1]
    assert [low, high] == pytest.approx(tally(judged).intervals([1])["1"])
    confirmed, unconfirmed = lines(figure)["paper: Multi 2B"], lines(figure)["paper: Multi 2B (unconfirmed)"]
    assert confirmed.get_xydata().tolist() == [[1, 0.1451], [100, 0.3856]]
    assert unconfirmed.get_xydata().tolist() == [[10, pytest.approx(0.2467)]]
    filled = [to_rgba(line.get_markerfacecolor()) for line in (confirmed, unconfirmed)]
    assert filled == [to_rgba("black"), to_rgba("white")] and axes.get_xlim()[1] > 100


def test_points_of_several_temperatures_do_not_overlap():
    axes = draw_pass_at_k({0.0: drawn(1, 1), 0.8: drawn(1, 1)}, "", None).axes[0]
    first, second = (container.lines[0].get_xdata()[0] for container in axes.containers)
    assert first == 1 < second < axes.get_xlim()[1]


def test_a_long_title_is_wrapped():
    figure = draw_pass_at_k({0.0: drawn(1, 1)}, "/a/long/path" * 15, None)
    figure.draw_without_rendering()
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 > 0 and box.x1 < figure.bbox.width


def test_a_model_that_solves_nothing_is_a_line_at_zero_and_files_are_deterministic(tmp_path):
    results = {0.2: [one._replace(outcome="failed") for one in drawn(10, 1)]}
    axes = draw_pass_at_k(results, "", None).axes[0]
    assert set(axes.lines[0].get_ydata()) == {0.0} and axes.get_ylim()[0] == 0 < axes.get_ylim()[1]
    for name in ("a.png", "b.png"):
        save_picture(results, "a model", None, epath.Path(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_characters_missing_from_the_font_give_no_warning(tmp_path, recwarn):
    save_picture({0.2: drawn(2, 1)}, "runs/\u65e5\u672c", None, epath.Path(tmp_path / "a.png"))
    assert not recwarn.list
