"""Matrices in the layout that decoding uses: [out, in], with each output's row contiguous, optionally int8."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind

Quantize = Literal["int8"] | None


class Matrix(NamedTuple):
    """A weight [out, in], either in the compute dtype or in int8 with a float32 scale per output channel."""

    values: Any
    scale: Any = None


def quantized(values: Any, xp: Any) -> Matrix:
    """Quantize a matrix [out, in] so that the largest magnitude in each row becomes 127; `xp` is NumPy or jax.numpy.

    The rounded values are returned as float32; the caller casts them to int8.
    """
    values = xp.asarray(values, xp.float32)
    scale = xp.maximum(xp.abs(values).max(1), 1e-12) / 127
    return Matrix(xp.rint(values / scale[:, None]), scale)


def linear(x: jax.Array, matrix: Matrix) -> jax.Array:
    """Multiply x [..., in] by a matrix [out, in]; the result is float32 [..., out].

    On CPUs XLA has fast kernels for int8 x int8 and bfloat16 x bfloat16 products (AMX, VNNI), but none for mixed types.
    For an int8 matrix, each row of activations therefore becomes two int8 rows, the rounded value and 254 times the
    rounding error, which keeps 15 bits of precision.
    """
    rows = x.reshape(-1, x.shape[-1])
    if matrix.scale is None:
        product = _product(rows, matrix.values, jnp.float32)
    elif device_kind() == "cpu":
        rows = rows.astype(jnp.float32)
        unit = jnp.maximum(jnp.abs(rows).max(1, keepdims=True), 1e-30) / 127
        coarse = jnp.round(rows / unit)
        fine = jnp.round((rows / unit - coarse) * 254)
        both = _product(jnp.concatenate([coarse, fine]).astype(jnp.int8), matrix.values, jnp.int32)
        product = (both[: len(rows)] + both[len(rows) :] / 254) * unit * matrix.scale
    else:
        product = _product(rows, matrix.values.astype(rows.dtype), jnp.float32) * matrix.scale
    return product.reshape(*x.shape[:-1], -1)


def min_rows(dtype: Any) -> int:
    """Minimum number of rows in a product. Padding smaller inputs is free when memory bandwidth is the bottleneck.

    A TPU would multiply a single row on the vector unit, at a quarter of the speed. On a CPU a single bfloat16 row is
    slow; float32 has a kernel for a single row, and int8 always has two rows.
    """
    return {"cpu": 4 if dtype == jnp.bfloat16 else 1, "TPU": 8}.get(device_kind()[:3], 1)


def _product(rows: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """Multiply rows [n, in] by values [out, in].

    On CPUs the kernels for two or more rows repack their second operand, so the activations are passed second: with 16
    float32 rows, weights are then read at 20 GB/s instead of 10. The barrier keeps XLA from swapping the operands back.
    """
    padded = jnp.pad(rows, ((0, max(0, min_rows(rows.dtype) - len(rows))), (0, 0)))
    multiply = lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    with products_of(rows.dtype):
        if device_kind() == "cpu" and len(padded) > 1:
            product = jax.lax.optimization_barrier(multiply(values, padded)).T
        else:
            product = multiply(padded, values)
    return product[: len(rows)]
