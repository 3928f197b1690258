"""Batches as global arrays. Each host reads only the rows its devices own and prefetches them for upcoming steps."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from codegen_jax.data.order import Order
from codegen_jax.data.rows import PADDING
from codegen_jax.data.sources import Rows


class Batches:
    """The training batches.

    Args:
        rows: the rows of each source.
        order: maps each row of each step to a window.
        sharding: how the rows of a batch are sharded.
    """

    def __init__(self, rows: Sequence[Rows], order: Order, sharding: NamedSharding):
        self.rows, self.order = rows, order
        self.shape = (order.batch_size, rows[0].sequence_length + 1)
        self.sharding = sharding

    def __call__(self, step: int) -> jax.Array:
        """The batch for a step, int32 [batch_size, sequence_length + 1], as in rows.py."""
        first = self.order.first_row(step)

        def read_row(row: int) -> np.ndarray:
            source, _, window = self.order.row(first + row)
            return self.rows[source][window]

        return _global_array(self.shape, self.sharding, read_row)


def validation_batches(rows: Rows, batch_size: int, sharding: NamedSharding, max_batches: int) -> Iterator[jax.Array]:
    """Up to `max_batches` batches from the start of a validation set, always in the same order.

    Rows past the end of the set are padding, which the loss ignores.
    """
    shape = (batch_size, rows.sequence_length + 1)
    padding = np.full(shape[1], PADDING, np.int32)
    for first in range(0, min(len(rows), max_batches * batch_size), batch_size):

        def read_row(row: int, first: int = first) -> np.ndarray:
            return rows[first + row] if first + row < len(rows) else padding

        yield _global_array(shape, sharding, read_row)


def _global_array(shape: tuple[int, int], sharding: NamedSharding, read_row: Callable[[int], np.ndarray]) -> jax.Array:
    def read_rows(index: Any) -> np.ndarray:
        return np.stack([read_row(row) for row in range(*index[0].indices(shape[0]))])

    return jax.make_array_from_callback(shape, sharding, read_rows)


def prefetch(load: Callable[[int], jax.Array], steps: range, depth: int = 2) -> Iterator[jax.Array]:
    """Yield `load(step)` for each step; a background thread loads up to `depth` steps ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(load, step) for step in steps[:depth])
        for step in range(steps.start + depth, steps.stop + depth):
            yield pending.popleft().result()
            if step < steps.stop:
                pending.append(pool.submit(load, step))
