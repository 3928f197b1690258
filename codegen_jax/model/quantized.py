"""Weights below an adapter in 8 or 4 bits, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314), by qwix's arrays.

A matrix is a `qwix.QArray`: integers, and a scale per tile of `TILE` values along the axis "embed". It is dequantized
to the compute dtype where it is used, layer by layer.
"""

import math
from typing import Any

import jax
import qwix

TILE = 64  # values per scale, as in QLoRA


def tile_of(axes: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """Values per scale of a matrix with these logical axes: 64, or fewer if 64 does not divide the width."""
    return math.gcd(TILE, shape[axes.index("embed")])


def quantize(w: jax.Array, axes: tuple[str, ...], kind: str) -> Any:
    """The matrices of all layers in fewer bits, one layer after the other.

    Args:
        w: the matrices, stacked on the first axis, in the dtype to which they will be dequantized.
        axes: its logical axes.
        kind: "int8" or "nf4".

    Returns:
        A `qwix.QArray`; all of its arrays have the rank of w and can be sharded like it.
    """
    embed = axes.index("embed") - 1  # without the layers
    others = [axis for axis in range(w.ndim - 1) if axis != embed]
    tiles = {embed: tile_of(axes, w.shape)}
    return jax.lax.map(lambda layer: qwix.quantize(layer, kind, channelwise_axes=others, tiled_axes=tiles), w)


def dense(w: Any, dtype: Any) -> jax.Array:
    """A matrix, which may be quantized, in the compute dtype."""
    if isinstance(w, jax.Array):
        return w.astype(dtype)
    return qwix.dequantize(w).astype(dtype)
