"""What the network and its loss do differently on a CPU, where XLA's fast kernels are not those of a TPU or GPU.

Every choice that is made for CPUs is in this file and in attention_cpu.py; the functions here are the plain operations
elsewhere, so they change no program for a TPU. docs/performance.md has the measurements.

Axes: N rows and positions, X and Y the two sides of a weight.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from codegen_jax.model.precision import products_of
from codegen_jax.sharding import device_kind

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


def einsum_with_update(
    equation: str, x: jax.Array, w: jax.Array, r_BTR: jax.Array, b: jax.Array
) -> tuple[jax.Array, ...]:
    """`einsum(equation, x, w)` and the update r b of an adapter, as terms of a sum.

    On a CPU they are one product, [x, r] [w; b]: XLA copies w out of the stack of layers anyway, and an update of its
    own would read and write the whole output once more. The gradient of b does not need that of w.

    Args:
        equation: as in `einsum`.
        x: activations [B, T, ...].
        w: a weight in the dtype of x.
        r_BTR: the activations' product with the adapter's A.
        b: the adapter's B [R, ...], with the last axes of w.
    """
    if on_cpu():
        return (_einsum_with_update(x, w, r_BTR, b),)
    outputs = equation.partition("->")[2][2:]
    with jax.named_scope("adapter"):
        update = jnp.einsum(f"BTR,R{outputs}->BT{outputs}", r_BTR, b)
    return jnp.einsum(equation, x, w), update


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, w, preferred_element_type=jnp.float32).astype(x.dtype)


def _gradients(equation: str, operands: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = operands
    N = x.shape[0] * x.shape[1]
    x_NX, dy_NY = x.reshape(N, -1), dy.reshape(N, -1)
    X, Y = x_NX.shape[1], dy_NY.shape[1]
    with products_of(w.dtype):  # jax.checkpoint traces this outside the forward pass's context
        dx_NX = _times_transposed(dy_NY, w.reshape(X, Y))
        dw_XY = _weight_gradient(x_NX, dy_NY)
    return dx_NX.reshape(x.shape), dw_XY.reshape(w.shape)


def _times_transposed(dy_NY: jax.Array, w_XY: jax.Array) -> jax.Array:
    # in float32: transposing w for bfloat16's kernel takes longer than that saves
    return (dy_NY.astype(jnp.float32) @ w_XY.astype(jnp.float32).T).astype(w_XY.dtype)


def _weight_gradient(x_NX: jax.Array, dy_NY: jax.Array) -> jax.Array:
    (N, X), Y = x_NX.shape, dy_NY.shape[1]
    transposing_x_moves_more = N * X > N * Y + X * Y  # than transposing dy and the result
    if x_NX.dtype == jnp.float32 and transposing_x_moves_more:  # jax 0.10 can't run this in bfloat16
        return (_row_major(dy_NY.T) @ x_NX).T
    return jnp.matmul(_row_major(x_NX.T), dy_NY, preferred_element_type=jnp.float32).astype(x_NX.dtype)


_einsum.defvjp(lambda equation, x, w: (_einsum(equation, x, w), (x, w)), _gradients)


@jax.custom_vjp
def _einsum_with_update(x: jax.Array, w: jax.Array, r_BTR: jax.Array, b: jax.Array) -> jax.Array:
    x_NX, w_XY, r_NR, b_RY = _matrices(x, w, r_BTR, b)
    wider_x, wider_w = jnp.concatenate([x_NX, r_NR], axis=1), jnp.concatenate([w_XY, b_RY])
    y_NY = jnp.matmul(wider_x, wider_w, preferred_element_type=jnp.float32)
    return y_NY.astype(x.dtype).reshape(*x.shape[:2], *b.shape[1:])


def _gradients_with_update(operands: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
    x_NX, w_XY, r_NR, b_RY = _matrices(*operands)
    dy_NY = dy.reshape(len(x_NX), -1)
    with products_of(dy.dtype):  # as in `_gradients`
        wider_dx = _times_transposed(dy_NY, jnp.concatenate([w_XY, b_RY]))
        dx_NX, dr_NR = jnp.split(wider_dx, [x_NX.shape[1]], axis=1)
        gradients = dx_NX, _weight_gradient(x_NX, dy_NY), dr_NR, _weight_gradient(r_NR, dy_NY)
    return tuple(gradient.reshape(x.shape) for gradient, x in zip(gradients, operands))


_einsum_with_update.defvjp(lambda *operands: (_einsum_with_update(*operands), operands), _gradients_with_update)


def _matrices(x: jax.Array, w: jax.Array, r_BTR: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    N, R, Y = x.shape[0] * x.shape[1], len(b), b.size // len(b)
    return x.reshape(N, -1), w.reshape(-1, Y), r_BTR.reshape(N, R), b.reshape(R, Y)


def _row_major(x: jax.Array) -> jax.Array:
    """A transposed matrix written out; otherwise the product's kernel would read it column by column."""
    return with_layout_constraint(x, Layout((0, 1)))
