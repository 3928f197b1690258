"""Products of float32 matrices are float32 on every device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp


def products_of(dtype: Any) -> AbstractContextManager[Any]:
    """The precision of the matrix products traced within, and of their gradients.

    Left to itself, JAX lets a TPU multiply float32 matrices in one pass of bfloat16 and an NVIDIA GPU in TF32, which
    keeps 10 bits of a mantissa's 23. Products of bfloat16 are exact either way, and a Pallas kernel for TPUs refuses to
    be told.

    Example:
        with products_of(x_BTD.dtype):
            y_BTF = x_BTD @ w_DF
    """
    return jax.default_matmul_precision("highest") if dtype == jnp.float32 else nullcontext()
