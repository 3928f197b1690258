"""Which window is row r of step n: a pure function of the seed, whatever the mesh, the hosts, and when a run stopped.

Rows are numbered through all batches. Row g belongs to one source of the mixture and is the i-th of that source; the
source's windows come in an order that the seed shuffles anew each epoch.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

import grain


class Row(NamedTuple):
    """Where a row comes from.

    Attributes:
        source: number of the source.
        epoch: how often its windows were all used before.
        window: number of the window.
    """

    source: int
    epoch: int
    window: int


class Mixture:
    """Interleaves sources in proportion to their weights, evenly: of any n rows each has n * share, but for rounding.

    The first source takes row g if (g + 1) * share reaches a whole number that g * share has not; the others share the
    rows that it leaves in the same way. Weights are the decimal numbers that they are written as, and all sums are
    whole numbers, so nothing drifts.
    """

    def __init__(self, weights: Sequence[float]):
        fractions = [Fraction(str(weight)) for weight in weights]
        denominator = lcm(*(fraction.denominator for fraction in fractions))
        self.weights = [int(fraction * denominator) for fraction in fractions]

    def locate(self, row: int) -> tuple[int, int]:
        """The source of a row, and how many rows of that source come before it."""
        rest = sum(self.weights)
        for source, weight in enumerate(self.weights):
            before = row * weight // rest
            if (row + 1) * weight // rest > before:
                return source, before
            row, rest = row - before, rest - weight
        raise AssertionError("the last source takes every row that is left")

    def counts(self, rows: int) -> list[int]:
        """How many of the first rows each source has."""
        rest, counts = sum(self.weights), []
        for weight in self.weights:
            counts.append(rows * weight // rest)
            rows, rest = rows - counts[-1], rest - weight
        return counts


class Order:
    """The rows of every step.

    Args:
        lengths: windows of each source.
        weights: of each source.
        batch_size: rows a step.
        seed: of the shuffles.
        skip_steps: pairs [first, last] of steps as the log numbers them, from 1; what they would have trained on is
            left out. A pair counts in the numbering that the pairs before it make.
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
        """Number of the first row of a step; steps count from 0 here, and pass over what is left out."""
        skipped = sum(last - first + 1 for first, last in self.skip_steps if first <= step + 1)
        return (step + skipped) * self.batch_size

    def row(self, number: int) -> Row:
        source, index = self.mixture.locate(number)
        return Row(source, index // self.lengths[source], int(self.shuffles[source][index]))

    def epochs(self, steps: int) -> list[float]:
        """How often each source was gone through in the first steps; what they left out counts as gone through."""
        counts = self.mixture.counts(self.first_row(steps))
        return [count / length for count, length in zip(counts, self.lengths, strict=True)]
