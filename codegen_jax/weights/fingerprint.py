"""Fingerprints of arrays: 32-bit sums over the bits of each value, multiplied by a factor for its position.

A fingerprint does not depend on the mesh. The fingerprints of an array's regions add up to that of the array, so an
array read in regions can be checked in regions. The position factor is odd, so every single-bit change is detected.
16-bit values count as the float32 values that they represent, so converting them to float32 keeps the fingerprint.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

FACTOR = 0x9E3779B1  # a prime near 2^32 / golden ratio: factors of distant positions differ in all bits
BLOCK = 1 << 22  # maximum number of elements summed at once: 16 MB


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of each array in a tree, by dotted path ("params.blocks.query")."""
    found = jax.device_get(_of_leaves(tree))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path, simple=True, separator="."): int(value) for path, value in leaves}


@jax.jit
def _of_leaves(tree: Any) -> Any:
    def of_leaf(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
        factor = jnp.ones(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            factor = factor * jnp.uint32(FACTOR) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * factor)

    return jax.tree.map(of_leaf, tree)


def region_fingerprint(region: np.ndarray, first: tuple[int, ...]) -> int:
    """The contribution of a region to the fingerprint of its array, modulo 2^32.

    Args:
        region: float32, float16 or bfloat16, with at least one axis.
        first: index of the region's first element within the array.
    """
    if region.size > BLOCK and max(region.shape[:-1], default=1) > 1:
        axis = int(np.argmax(region.shape[:-1]))
        middle = region.shape[axis] // 2
        start, rest = np.split(region, [middle], axis)
        first_of_rest = tuple(at + middle * (n == axis) for n, at in enumerate(first))
        return (region_fingerprint(start, first) + region_fingerprint(rest, first_of_rest)) % 2**32
    if region.dtype == ml_dtypes.bfloat16:
        bits = np.ascontiguousarray(region).view(np.uint16).astype(np.uint32) << 16
    else:
        bits = np.ascontiguousarray(region, np.float32).view(np.uint32)
    # factor[i, .., j] = base[i, ..] + 2 j, so two sums per row suffice
    with np.errstate(over="ignore"):
        base = np.ones((1,) * (region.ndim - 1), np.uint32)
        for axis, (start, size) in enumerate(zip(first[:-1], region.shape[:-1])):
            shape = [size if n == axis else 1 for n in range(region.ndim - 1)]
            base = base * np.uint32(FACTOR) + 2 * np.arange(start, start + size, dtype=np.uint32).reshape(shape)
        base = base * np.uint32(FACTOR) + np.uint32(2 * first[-1])
        row_sums = np.einsum("...j->...", bits)
        weighted_sums = np.einsum("...j,j->...", bits, np.arange(region.shape[-1], dtype=np.uint32))
        total = np.sum(base * row_sums, dtype=np.uint32) + 2 * np.sum(weighted_sums, dtype=np.uint32)
    return int(total) % 2**32


class Regions:
    """Tracks the regions of one array that have been read, until they cover it."""

    def __init__(self, shape: tuple[int, ...]):
        self.size = prod(shape)
        self.seen: dict[tuple[tuple[int, int], ...], int] = {}  # fingerprints by (start, stop) of each axis

    def add(self, region: np.ndarray, first: tuple[int, ...]) -> int | None:
        """Add a region; return the array's fingerprint once the regions cover the array, else None."""
        box = tuple((start, start + size) for start, size in zip(first, region.shape, strict=True))
        if box in self.seen:
            return None
        # parts read in another grid are counted once
        self.seen = {other: value for other, value in self.seen.items() if not _overlap(box, other)}
        self.seen[box] = region_fingerprint(region, first)
        covered = sum(prod(stop - start for start, stop in box) for box in self.seen)
        return sum(self.seen.values()) % 2**32 if covered == self.size else None


def _overlap(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> bool:
    return all(start < other_stop and other_start < stop for (start, stop), (other_start, other_stop) in zip(a, b))
