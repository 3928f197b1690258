"""Bootstrap intervals match theory where it is known; a paired interval is the interval of the differences."""

import numpy as np
import pytest

from codegen_jax.evaluation.intervals import mean_interval, paired_difference


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_intervals_of_binary_values_match_the_binomial_distribution(share):
    """The sum of P such draws is binomial, so the half-width is 1.96 sqrt(p (1 - p) / P), up to 1 / P."""
    problems = 1000
    values = np.arange(problems) < share * problems
    low, high = mean_interval(values.astype(float))
    half_width = 1.96 * np.sqrt(share * (1 - share) / problems)
    assert low == pytest.approx(share - half_width, abs=0.002) and high == pytest.approx(share + half_width, abs=0.002)


def test_95_percent_of_intervals_contain_the_true_mean():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = mean_interval(random.beta(0.4, 1.6, 164))
        hits += low <= 0.2 <= high
    assert 180 <= hits <= 198


def test_intervals_are_deterministic_and_equal_values_have_no_spread():
    values = np.random.default_rng(0).random(164)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(np.ones(164)) == (1.0, 1.0) and mean_interval(np.array([0.25])) == (0.25, 0.25)
    assert mean_interval(np.array([0.0, 1.0] * 82)) == (0.420732, 0.579268)


def test_paired_runs_are_compared_over_their_common_problems():
    random = np.random.default_rng(0)
    first = {f"A/{n}": rate for n, rate in enumerate(random.random(164))}
    second = {task_id: rate + 0.1 for task_id, rate in reversed(first.items())} | {"B/0": 0.0}
    difference, interval = paired_difference(first | {"C/0": 1.0}, second)
    assert difference == pytest.approx(0.1) and interval == pytest.approx((0.1, 0.1))
    back, (low, high) = paired_difference({"A/0": 1.0, "A/1": 1.0}, {"A/1": 0.0, "A/0": 1.0})
    assert back == -0.5 and (low, high) == (-1.0, 0.0)
