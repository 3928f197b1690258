"""What the network and its loss do differently on a CPU, where XLA's fast kernels are not those of a TPU or GPU.

Every choice that is made for CPUs is in this file; its functions are the plain operations elsewhere, so it changes no
program for a TPU. docs/performance.md has the measurements.

Axes: N rows and positions, X and Y the two sides of a weight.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind

QUERY_BLOCK = 128  # attention computes the scores of this many queries at a time, and skips the keys after them
LOSS_CHUNK_TOKENS = 1024  # a quarter of the logits elsewhere: they stay in the cache, and fewer pages are touched


def on_cpu() -> bool:
    """Whether the code that is being traced will run on a CPU."""
    return device_kind() == "cpu"


def einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`jnp.einsum` of activations and a weight, for products over the last axes of x and the first of w.

    On a CPU, products of bfloat16 are summed in float32, for which XLA has a kernel that is twice as fast, and the
    weight's gradient is a product of row-major matrices: JAX's own rule computes it as (dy^T x)^T, for which XLA has a
    kernel of 0.4 to 0.9 times the speed. Both kernels read row-major matrices only.

    Args:
        equation: such as "BTD,DHK->BTHK".
        x: activations [B, T, ...].
        w: a weight in the dtype of x.

    Returns:
        The product in the dtype of x.

    Example:
        >>> einsum("BTD,DHK->BTHK", jnp.ones((2, 8, 16)), jnp.ones((16, 4, 4))).shape
        (2, 8, 4, 4)
    """
    return _einsum(equation, x, w) if on_cpu() else jnp.einsum(equation, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, w, preferred_element_type=jnp.float32).astype(x.dtype)


def _gradients(equation: str, operands: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = operands
    N = x.shape[0] * x.shape[1]
    x_NX, dy_NY = x.reshape(N, -1), dy.reshape(N, -1)
    X, Y = x_NX.shape[1], dy_NY.shape[1]
    with products_of(w.dtype):  # jax.checkpoint traces this outside the forward pass's context
        # in float32: transposing w for bfloat16's kernel takes longer than that saves
        dx_NX = dy_NY.astype(jnp.float32) @ w.reshape(X, Y).astype(jnp.float32).T
        transposing_x_moves_more = N * X > N * Y + X * Y  # than transposing dy and the result
        if w.dtype == jnp.float32 and transposing_x_moves_more:  # jax 0.10 can't run this in bfloat16
            dw_XY = (_row_major(dy_NY.T) @ x_NX).T
        else:
            dw_XY = jnp.matmul(_row_major(x_NX.T), dy_NY, preferred_element_type=jnp.float32)
    return dx_NX.astype(x.dtype).reshape(x.shape), dw_XY.astype(w.dtype).reshape(w.shape)


_einsum.defvjp(lambda equation, x, w: (_einsum(equation, x, w), (x, w)), _gradients)


def _row_major(x: jax.Array) -> jax.Array:
    """A transposed matrix written out; otherwise the product's kernel would read it column by column."""
    return with_layout_constraint(x, Layout((0, 1)))
