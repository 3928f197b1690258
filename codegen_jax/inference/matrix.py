"""A matrix as decoding multiplies it: [out, in], each output's row contiguous, maybe int8."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind

Quantize = Literal["int8"] | None


class Matrix(NamedTuple):
    """A weight [out, in]: in the compute dtype, or int8 with a float32 scale for each output."""

    values: Any
    scale: Any = None


def quantized(values: Any, xp: Any) -> Matrix:
    """A matrix [out, in] as int8, the largest of each row 127, with NumPy or jax.numpy as `xp`; values are float32."""
    values = xp.asarray(values, xp.float32)
    scale = xp.maximum(xp.abs(values).max(1), 1e-12) / 127
    return Matrix(xp.rint(values / scale[:, None]), scale)


def linear(x: jax.Array, matrix: Matrix) -> jax.Array:
    """x [..., in] times a matrix [out, in], float32 [..., out].

    On a CPU XLA has fast kernels for products of two int8 and of two bfloat16 matrices (AMX, VNNI), but none for mixed
    types. So a row of activations becomes two int8 rows, its value and 254 times what rounding left, which keeps 15
    bits of it.
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


def few_rows(dtype: Any) -> int:
    """How many rows a product has at least: fewer are padded, which costs nothing where memory is what is waited for.

    On a TPU a single row would be multiplied by the vector unit, at a quarter of the speed. On a CPU a single row of
    bfloat16 is slow, while float32 has a kernel for it, and int8 comes in two rows.
    """
    return {"cpu": 4 if dtype == jnp.bfloat16 else 1, "TPU": 8}.get(device_kind()[:3], 1)


def _product(rows: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """On a CPU the kernels for two rows or more repack their second matrix, so the rows are the second there: 16 of
    float32 then read weights at 20 GB/s instead of 10. The barrier keeps XLA from swapping them back."""
    padded = jnp.pad(rows, ((0, max(0, few_rows(rows.dtype) - len(rows))), (0, 0)))
    multiply = lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    with products_of(rows.dtype):
        if device_kind() == "cpu" and len(padded) > 1:
            product = jax.lax.optimization_barrier(multiply(values, padded)).T
        else:
            product = multiply(padded, values)
    return product[: len(rows)]
