"""The parallel block: x + attention(LN(x)) + mlp(LN(x)).

Training and decoding differ in their matrix products and attention, so both are passed in. The order of operations,
the LayerNorm and the residual sum are defined here.

Axes: B batch, T time, D n_embd, H heads, K head_dim, R rotary_dim / 2.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from codegen_jax.model.rotary import rotate
from codegen_jax.sharding import constrain

# q, k, v [B, T, H, K], q and k rotated -> head outputs [B, T, H, K] and any extra output
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Products(Protocol):
    """The matrix products of one block, independent of how its weights are stored."""

    def inner(self, h_BTD: jax.Array, /) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """q, k and v [B, T, H, K], and the MLP's inner states with their bias, in a shape that `outer` accepts."""
        ...

    def outer(self, a_BTHK: jax.Array, m: jax.Array, /) -> jax.Array:
        """The sum [B, T, D] of the projected head outputs and the projected MLP inner states, with bias."""
        ...


class Product(Protocol):
    """How a block multiplies activations and one of its weights."""

    def __call__(self, name: str, equation: str, x: jax.Array, w: jax.Array, /) -> tuple[jax.Array, ...]:
        """`jnp.einsum(equation, x, w)` for the weight of this name, and any updates to add to it, of the same shape."""
        ...


class Updates(Protocol):
    """What an adapter adds to the network; model/adapter.py has the implementation."""

    def embed(self, tokens_BT: jax.Array, x_BTD: jax.Array, /) -> jax.Array:
        """The embeddings [B, T, D], with those that the adapter replaces."""
        ...

    def stacked(self, n_layer: int, /) -> Any:
        """A tree of arrays with a leading axis of n_layer, for `product`."""
        ...

    def product(self, stacked: Any, /) -> Product:
        """A layer's products with its updates, from one layer of `stacked`."""
        ...


def parallel_block(
    x_BTD: jax.Array,
    norm: Callable[[jax.Array], jax.Array],
    products: Products,
    attend: Attend,
    angles_BTR: jax.Array,
) -> tuple[jax.Array, Any]:
    """One block (the paper's section 2.2; `ParallelTransformerBlock` in the authors' modules.py).

    Args:
        x_BTD: the residual stream, in the compute dtype.
        norm: the block's LayerNorm.
        products: the block's matrix products.
        attend: causal attention.
        angles_BTR: angles from `rotary_angles`.

    Returns:
        The residual stream [B, T, D] and the extra output of `attend`.
    """
    h_BTD = norm(x_BTD)
    q, k, v, u = products.inner(h_BTD)
    with jax.named_scope("attention"):
        a_BTHK, extra = attend(rotate(q, angles_BTR), rotate(k, angles_BTR), v)
    x_BTD += products.outer(a_BTHK, jax.nn.gelu(u).astype(x_BTD.dtype))
    return constrain(x_BTD, "batch", None, None), extra


def layer_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis in the dtype of x; its statistics are float32 and named "norm" for remat."""
    x = x_BTD.astype(jnp.float32)
    x -= checkpoint_name(x.mean(-1, keepdims=True), "norm")
    x *= checkpoint_name(jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon), "norm")
    return (x * scale_D + bias_D).astype(x_BTD.dtype)
