"""Fingerprints of arrays: 32-bit sums over the bits of their values and the places where they stand.

They are the same on every mesh, and those of an array's regions add up to the array's, so what is read piece by piece
is checked piece by piece. The place of an element is odd, so no single changed bit is lost. Values of 16 bits count as
the float32 that they are: a fingerprint does not change when they are read into float32.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

FACTOR = 0x9E3779B1  # the odd number nearest to 2^32 over the golden ratio: places far apart differ in all bits
PIECE = 1 << 22  # elements whose bits are looked at together: 16 MB


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of each array of a tree, by its path with dots ("params.blocks.query")."""
    found = jax.device_get(_of_leaves(tree))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path, simple=True, separator="."): int(value) for path, value in leaves}


@jax.jit
def _of_leaves(tree: Any) -> Any:
    def of_leaf(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        place = jnp.ones(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            place = place * jnp.uint32(FACTOR) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * place)

    return jax.tree.map(of_leaf, tree)


def region_fingerprint(region: np.ndarray, first: tuple[int, ...]) -> int:
    """What a region adds to the fingerprint of its array, modulo 2^32.

    Args:
        region: one axis or more; float32, float16 or bfloat16.
        first: the index of its first element in the array.
    """
    if region.size > PIECE and max(region.shape[:-1], default=1) > 1:
        axis = int(np.argmax(region.shape[:-1]))
        middle = region.shape[axis] // 2
        start, rest = np.split(region, [middle], axis)
        behind = tuple(at + middle * (n == axis) for n, at in enumerate(first))
        return (region_fingerprint(start, first) + region_fingerprint(rest, behind)) % 2**32
    if region.dtype == ml_dtypes.bfloat16:
        bits = np.ascontiguousarray(region).view(np.uint16).astype(np.uint32) << 16
    else:
        bits = np.ascontiguousarray(region, np.float32).view(np.uint32)
    # place[i, .., j] = base[i, ..] + 2 j, so two sums over a row do for its elements
    with np.errstate(over="ignore"):
        base = np.ones((1,) * (region.ndim - 1), np.uint32)
        for axis, (start, size) in enumerate(zip(first[:-1], region.shape[:-1])):
            shape = [size if n == axis else 1 for n in range(region.ndim - 1)]
            base = base * np.uint32(FACTOR) + 2 * np.arange(start, start + size, dtype=np.uint32).reshape(shape)
        base = base * np.uint32(FACTOR) + np.uint32(2 * first[-1])
        of_rows = np.einsum("...j->...", bits)
        by_place = np.einsum("...j,j->...", bits, np.arange(region.shape[-1], dtype=np.uint32))
        total = np.sum(base * of_rows, dtype=np.uint32) + 2 * np.sum(by_place, dtype=np.uint32)
    return int(total) % 2**32


class Regions:
    """The regions of one array that have been read, until they cover it."""

    def __init__(self, shape: tuple[int, ...]):
        self.size = prod(shape)
        self.seen: dict[tuple[tuple[int, int], ...], int] = {}  # fingerprints by (start, stop) of each axis

    def add(self, region: np.ndarray, first: tuple[int, ...]) -> int | None:
        """The array's fingerprint, if it is covered now."""
        box = tuple((start, start + size) for start, size in zip(first, region.shape, strict=True))
        if box in self.seen:
            return None
        if any(_overlap(box, other) for other in self.seen):  # somebody cuts it anew: the sum would count twice
            self.seen.clear()
        self.seen[box] = region_fingerprint(region, first)
        covered = sum(prod(stop - start for start, stop in box) for box in self.seen)
        return sum(self.seen.values()) % 2**32 if covered == self.size else None


def _overlap(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> bool:
    return all(start < other_stop and other_start < stop for (start, stop), (other_start, other_stop) in zip(a, b))
