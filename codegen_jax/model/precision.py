"""Full float32 precision for products of float32 matrices on every device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp


def products_of(dtype: Any) -> AbstractContextManager[Any]:
    """Set the precision of matrix products traced in this context, and of their gradients.

    By default, JAX lets a TPU multiply float32 matrices in one pass of bfloat16 and an NVIDIA GPU in TF32, which
    keeps 10 of the 23 mantissa bits. Products of bfloat16 are exact either way, and Pallas TPU kernels reject a
    precision setting.

    Example:
        with products_of(x_BTD.dtype):
            y_BTF = x_BTD @ w_DF
    """
    return jax.default_matmul_precision("highest") if dtype == jnp.float32 else nullcontext()
