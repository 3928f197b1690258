"""Map row r of step n to a window: a pure function of the seed, independent of mesh, hosts and restarts.

Rows are numbered consecutively across batches. Row g belongs to one source of the mixture and is the i-th row of that
source. Each source's windows are reshuffled every epoch, using the seed.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

import grain


class Row(NamedTuple):
    """Where a row comes from.

    Attributes:
        source: index of the source.
        epoch: number of completed epochs of that source.
        window: index of the window within the source.
    """

    source: int
    epoch: int
    window: int


class Mixture:
    """Interleaves sources evenly in proportion to their weights: any n rows contain n * share of each, up to rounding.

    The first source gets row g if (g + 1) * share reaches an integer that g * share has not reached. The other sources
    divide the remaining rows in the same way. Weights are read as exact decimal fractions and all arithmetic is on
    integers, so nothing drifts.
    """

    def __init__(self, weights: Sequence[float]):
        fractions = [Fraction(str(weight)) for weight in weights]
        denominator = lcm(*(fraction.denominator for fraction in fractions))
        self.weights = [int(fraction * denominator) for fraction in fractions]

    def locate(self, row: int) -> tuple[int, int]:
        """The source of a row, and the number of earlier rows from that source."""
        rest = sum(self.weights)
        for source, weight in enumerate(self.weights):
            before = row * weight // rest
            if (row + 1) * weight // rest > before:
                return source, before
            row, rest = row - before, rest - weight
        raise AssertionError("the last source gets every remaining row")

    def counts(self, rows: int) -> list[int]:
        """The number of rows from each source among the first `rows` rows."""
        rest, counts = sum(self.weights), []
        for weight in self.weights:
            counts.append(rows * weight // rest)
            rows, rest = rows - counts[-1], rest - weight
        return counts


class Order:
    """The rows of every step.

    Args:
        lengths: number of windows in each source.
        weights: weight of each source.
        batch_size: rows per step.
        seed: seed of the shuffles.
        skip_steps: pairs [first, last] of steps, numbered as in the log, starting at 1. The data of these steps is
            skipped. Each pair uses the step numbers that result from applying the pairs before it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        skip_steps: Sequence[Sequence[int]] = (),
    ):
        self.lengths, self.batch_size, self.skip_steps = lengths, batch_size, skip_steps
        self.mixture = Mixture(weights)
        self.shuffles: list[Any] = [grain.MapDataset.range(length).shuffle(seed=seed).repeat() for length in lengths]

    def first_row(self, step: int) -> int:
        """Number of the first row of a step, past any skipped rows. Steps are numbered from 0 here."""
        skipped = sum(last - first + 1 for first, last in self.skip_steps if first <= step + 1)
        return (step + skipped) * self.batch_size

    def row(self, number: int) -> Row:
        source, index = self.mixture.locate(number)
        return Row(source, index // self.lengths[source], int(self.shuffles[source][index]))

    def epochs(self, steps: int) -> list[float]:
        """The number of epochs of each source consumed by the first `steps` steps; skipped data counts as consumed."""
        counts = self.mixture.counts(self.first_row(steps))
        return [count / length for count, length in zip(counts, self.lengths, strict=True)]
