"""Next-token cross-entropy with z-loss, computed in chunks of the sequence so [B, T, V] logits are never materialized.

Axes: B batch, T time, C a chunk of time, D width, V vocabulary.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codegen_jax.model.cpu import LOSS_CHUNK_TOKENS, on_cpu
from codegen_jax.model.precision import products_of
from codegen_jax.sharding import constrain

CHUNK_TOKENS = 4096  # per device; float32 logits over 51,200 ids take 0.8 GiB


class Loss(NamedTuple):
    """float32 scalars in nats, summed over tokens and scaled; micro-batch values add up to the batch value.

    Attributes:
        total: cross-entropy plus z-loss; the only differentiable one.
        cross_entropy: cross-entropy without z-loss.
    """

    total: jax.Array
    cross_entropy: jax.Array


def perplexity(loss: float) -> float:
    """Perplexity of a cross-entropy in nats per token; capped at e^700 to avoid overflow."""
    return math.exp(min(loss, 700.0))


def count_targets(targets_BT: jax.Array) -> jax.Array:
    """Number of valid targets (not below 0), float32."""
    return jnp.sum(targets_BT >= 0, dtype=jnp.float32)


def next_token_loss(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    head_bias_V: jax.Array,
    targets_BT: jax.Array,
    *,
    scale: jax.Array | float = 1.0,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
) -> Loss:
    """scale * sum over tokens of [-log p(target) + z_loss * log(Z)^2], in float32 (jaxformer's model.py: z_loss 1e-4).

    Args:
        x_BTD: hidden states after the final LayerNorm.
        head_DV: output kernel; cast to the dtype of x for the products. Its gradient is summed in float32.
        head_bias_V: output bias.
        targets_BT: int32 ids; targets below 0 are ignored.
        scale: 1 / (targets in the whole batch) gives the mean without a pass over the gradients.
        z_loss: weight of the squared log-partition.
        chunk_size: positions per chunk; by default, chosen to give `CHUNK_TOKENS` tokens per chunk, or
            `LOSS_CHUNK_TOKENS` on a CPU.
    """
    B, T = targets_BT.shape
    chunk_tokens = LOSS_CHUNK_TOKENS if on_cpu() else CHUNK_TOKENS
    chunk_size = min(chunk_size or max(1, chunk_tokens // B), T)
    padding = -T % chunk_size
    if padding:
        x_BTD = jnp.pad(x_BTD, ((0, 0), (0, padding), (0, 0)))
        targets_BT = jnp.pad(targets_BT, ((0, 0), (0, padding)), constant_values=-1)
    scale = jnp.asarray(scale, jnp.float32)
    sums: Any = _chunked_loss(x_BTD, head_DV, head_bias_V, targets_BT, scale, z_loss, chunk_size)
    return Loss(*sums)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked_loss(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    head_bias_V: jax.Array,
    targets_BT: jax.Array,
    scale: jax.Array,
    z_loss: float,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    kernel = head_DV.astype(x_BTD.dtype)

    def chunk(sums: Any, xs: Any) -> tuple[Any, None]:
        x_BCD, targets_BC = xs
        loss, cross_entropy, _ = _dense(x_BCD, kernel, head_bias_V, targets_BC, scale, z_loss)
        return (sums[0] + loss, sums[1] + cross_entropy), None

    with products_of(x_BTD.dtype):
        return jax.lax.scan(chunk, (0.0, 0.0), _chunks(x_BTD, targets_BT, chunk_size))[0]


def _forward(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    head_bias_V: jax.Array,
    targets_BT: jax.Array,
    scale: jax.Array,
    z_loss: float,
    chunk_size: int,
) -> Any:
    """Return the sums and the gradients, computed while each chunk's logits are available.

    The loss is a scalar, so its gradient is known up to a factor in the forward pass. This takes 3 products with the
    head; jax.checkpoint would recompute the logits and take 4.
    """
    kernel = head_DV.astype(x_BTD.dtype)

    def chunk(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
        loss_sum, cross_entropy_sum, d_head_DV, d_bias_V = carry
        x_BCD, targets_BC = xs
        loss, cross_entropy, d_logits_BCV = _dense(x_BCD, kernel, head_bias_V, targets_BC, scale, z_loss)
        d_bias_V += d_logits_BCV.sum((0, 1))
        # materialize once: otherwise XLA on TPU recomputes it, exponentials included, in the tiles of both products
        d_logits_BCV = jax.lax.optimization_barrier(d_logits_BCV.astype(x_BCD.dtype))
        d_head_DV += jnp.einsum("BCD,BCV->DV", x_BCD, d_logits_BCV, preferred_element_type=jnp.float32)
        d_x_BCD = jnp.einsum("BCV,DV->BCD", d_logits_BCV, kernel)
        return (loss_sum + loss, cross_entropy_sum + cross_entropy, d_head_DV, d_bias_V), d_x_BCD

    zeros = (0.0, 0.0, constrain(jnp.zeros(head_DV.shape, jnp.float32), None, "vocab"), jnp.zeros_like(head_bias_V))
    with products_of(x_BTD.dtype):
        sums, d_x = jax.lax.scan(chunk, zeros, _chunks(x_BTD, targets_BT, chunk_size))
    loss, cross_entropy, d_head_DV, d_bias_V = sums
    d_x_BTD = d_x.swapaxes(0, 1).reshape(x_BTD.shape)
    return (loss, cross_entropy), (d_x_BTD, d_head_DV.astype(head_DV.dtype), d_bias_V)


def _backward(z_loss: float, chunk_size: int, gradients: Any, cotangents: Any) -> Any:
    d_x, d_head, d_bias = (gradient * cotangents[0].astype(gradient.dtype) for gradient in gradients)
    return d_x, d_head, d_bias, None, None


_chunked_loss.defvjp(_forward, _backward)


def _chunks(x_BTD: jax.Array, targets_BT: jax.Array, chunk_size: int) -> tuple[jax.Array, jax.Array]:
    """Split time into chunks on a leading axis, for scan."""
    B, T, D = x_BTD.shape
    x = x_BTD.reshape(B, T // chunk_size, chunk_size, D).swapaxes(0, 1)
    return x, targets_BT.reshape(B, T // chunk_size, chunk_size).swapaxes(0, 1)


def _dense(
    x_BCD: jax.Array,
    kernel_DV: jax.Array,
    bias_V: jax.Array,
    targets_BC: jax.Array,
    scale: jax.Array,
    z_loss: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, cross-entropy, and gradient of the loss with respect to the logits, for one chunk."""
    logits_BCV = jnp.einsum("BCD,DV->BCV", x_BCD, kernel_DV, preferred_element_type=jnp.float32) + bias_V
    valid_BC = targets_BC >= 0
    # a comparison with iota instead of a gather: it shards over the vocabulary and fuses
    is_target_BCV = jnp.arange(bias_V.shape[0]) == targets_BC[..., None]
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0.0), axis=-1)
    cross_entropy = jnp.sum(jnp.where(valid_BC, log_z_BC - target_BC, 0.0))
    z = jnp.sum(jnp.where(valid_BC, jnp.square(log_z_BC), 0.0))
    p_BCV = jnp.exp(logits_BCV - log_z_BC[..., None])
    d_logits_BCV = p_BCV * (1 + 2 * z_loss * log_z_BC[..., None]) - is_target_BCV
    d_logits_BCV *= jnp.where(valid_BC, scale, 0.0)[..., None]
    return scale * (cross_entropy + z_loss * z), scale * cross_entropy, d_logits_BCV
