"""The order of a mixture's rows: exact proportions, and each window once per epoch."""

import random

import pytest

from codegen_jax.data.order import Mixture, Order

WEIGHTS = [[1], [1, 1], [0.7, 0.3], [0.1, 0.2, 0.7], [3, 1e-3, 5, 2.5], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_row_is_the_next_row_of_its_source(weights):
    mixture, seen = Mixture(weights), [0] * len(weights)
    for row in range(3000):
        assert mixture.counts(row) == seen
        source, index = mixture.locate(row)
        assert index == seen[source]
        seen[source] += 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_proportions_are_exact_at_any_length(weights):
    mixture, generator = Mixture(weights), random.Random(0)
    for rows in [generator.randrange(10**9) for _ in range(200)] + [10**15 + 1]:
        for count, weight in zip(mixture.counts(rows), weights, strict=True):
            assert abs(count - rows * weight / sum(weights)) < 2


def test_proportions_equal_the_weights_over_a_whole_period():
    assert Mixture([0.1, 0.2, 0.7]).counts(10**12) == [10**11, 2 * 10**11, 7 * 10**11]  # 0.1 + 0.2 != 0.3 in floats


def test_every_range_of_rows_has_the_proportions():
    mixture = Mixture([0.7, 0.3])
    for start in range(0, 10_000, 37):
        sources = [mixture.locate(row)[0] for row in range(start, start + 20)]
        assert abs(sources.count(0) - 14) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_each_window_of_a_source_is_used_once_per_epoch_in_a_new_order(seed):
    order = Order([7, 11], [2, 1], 6, seed)
    for source, length in ((0, 7), (1, 11)):
        rows = [row for row in map(order.row, range(200)) if row.source == source]
        epochs = [rows[i : i + length] for i in range(0, len(rows) - length, length)]
        for number, epoch in enumerate(epochs):
            assert {row.epoch for row in epoch} == {number}
            assert sorted(row.window for row in epoch) == list(range(length))
        assert len({tuple(row.window for row in epoch) for epoch in epochs}) == len(epochs)


def test_epochs_are_counted_per_source():
    order = Order([10, 40], [1, 3], 8, 0)
    assert order.epochs(0) == [0, 0] and order.epochs(5) == [1, 0.75] and order.epochs(10) == [2, 1.5]


def test_only_the_skipped_steps_are_left_out():
    whole, skipping = Order([100], [1], 4, 0), Order([100], [1], 4, 0, [[3, 5]])
    batches = lambda order, steps: [order.first_row(step - 1) // 4 + 1 for step in steps]
    assert batches(whole, range(1, 9)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batches(skipping, range(1, 9)) == [1, 2, 6, 7, 8, 9, 10, 11]


def test_a_second_skip_uses_the_step_numbers_of_the_log():
    """Steps 5 and 6 of a run that skips [3, 5] use batches 8 and 9; to skip them, give the step numbers in the log."""
    order = Order([100], [1], 4, 0, [[3, 5], [5, 6]])
    assert [order.first_row(step - 1) // 4 + 1 for step in range(1, 8)] == [1, 2, 6, 7, 10, 11, 12]
