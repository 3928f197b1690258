"""Causal attention on CPUs, forward and backward in blocks, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135).

XLA's kernels for batched products on CPUs read row-major matrices, and its transposes are slow. Here queries, keys and
values are written once with the heads first, and the backward pass computes the weights transposed, so that the
gradients of keys and values are plain products. JAX's own backward pass transposes the weights of every block instead.
docs/performance.md has the measurements.

Axes: B batch, H heads, T queries, S keys (S = T), K head_dim.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from codegen_jax.model.precision import products_of

BLOCK = (
    128  # queries per block, which skips later keys; in the backward pass keys per block, which skips earlier queries
)

Segments = tuple[jax.Array, jax.Array] | None


@jax.custom_vjp
def attention_in_blocks(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments) -> jax.Array:
    """See `causal_attention`. All products are float32; remat's name for the residuals is "attention"."""
    return _forward(q_BTHK, k_BSHK, v_BSHK, segment_ids)[0]


def _forward(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, H, K], and for each query the logarithm of the sum of its exponentials [B, H, T]."""
    length, visible = q_BTHK.shape[1], _visible(q_BTHK.shape[1], segment_ids)
    q_BHTK, k_BHSK, v_BHSK = _heads_first(_scaled(q_BTHK), k_BSHK, v_BSHK)
    outputs, logsumexps = [], []
    for start in range(0, length, BLOCK):
        queries, keys = slice(start, start + BLOCK), slice(0, start + BLOCK)
        scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK[:, :, queries], k_BHSK[:, :, keys])
        scores_BHTS = jnp.where(visible[:, :, queries, keys], scores_BHTS, jnp.finfo(jnp.float32).min)
        largest_BHT1 = scores_BHTS.max(-1, keepdims=True)
        weights_BHTS = jnp.exp(scores_BHTS - largest_BHT1)
        sum_BHT1 = weights_BHTS.sum(-1, keepdims=True)
        outputs.append((weights_BHTS @ v_BHSK[:, :, keys]) / sum_BHT1)
        logsumexps.append((largest_BHT1 + jnp.log(sum_BHT1))[..., 0])
    return _heads_third(outputs, v_BSHK.dtype), jnp.concatenate(logsumexps, axis=2)


def _with_residuals(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, segment_ids: Segments
) -> tuple[jax.Array, tuple[Any, ...]]:
    found = _forward(q_BTHK, k_BSHK, v_BSHK, segment_ids)
    out_BTHK, logsumexp_BHT = (checkpoint_name(x, "attention") for x in found)
    return out_BTHK, (q_BTHK, k_BSHK, v_BSHK, segment_ids, out_BTHK, logsumexp_BHT)


def _gradients(residuals: tuple[Any, ...], dout_BTHK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHK, k_BSHK, v_BSHK, segment_ids, out_BTHK, logsumexp_BHT = residuals
    length, visible = q_BTHK.shape[1], _visible(q_BTHK.shape[1], segment_ids).mT
    # the softmax's gradient is weights x (dweights - the query's sum of weights x dweights), and this is the sum
    shared_BHT = (out_BTHK.astype(jnp.float32) * dout_BTHK).sum(-1).swapaxes(1, 2)
    q_BHTK, k_BHSK, v_BHSK, dout_BHTK = _heads_first(_scaled(q_BTHK), k_BSHK, v_BSHK, dout_BTHK)
    k_BHKS = jax.lax.optimization_barrier(k_BHSK.mT)
    dq_BHKT, dk, dv = jnp.zeros(k_BHKS.shape), [], []
    with products_of(q_BTHK.dtype):  # jax.checkpoint traces this outside the forward pass's context
        for start in range(0, length, BLOCK):
            keys, queries = slice(start, start + BLOCK), slice(start, None)
            scores_BHST = jnp.einsum("BHSK,BHTK->BHST", k_BHSK[:, :, keys], q_BHTK[:, :, queries])
            weights_BHST = jnp.exp(scores_BHST - logsumexp_BHT[:, :, None, queries])
            weights_BHST = jnp.where(visible[:, :, keys, queries], weights_BHST, 0)
            dv.append(weights_BHST @ dout_BHTK[:, :, queries])
            dweights_BHST = jnp.einsum("BHSK,BHTK->BHST", v_BHSK[:, :, keys], dout_BHTK[:, :, queries])
            dscores_BHST = weights_BHST * (dweights_BHST - shared_BHT[:, :, None, queries])
            dk.append(dscores_BHST @ q_BHTK[:, :, queries])
            dq_BHKT = dq_BHKT.at[..., queries].add(k_BHKS[..., keys] @ dscores_BHST)
    dq_BTHK = _scaled(dq_BHKT.transpose(0, 3, 1, 2)).astype(q_BTHK.dtype)
    return dq_BTHK, _heads_third(dk, k_BSHK.dtype), _heads_third(dv, v_BSHK.dtype), None


attention_in_blocks.defvjp(_with_residuals, _gradients)


def _visible(length: int, segment_ids: Segments) -> jax.Array:
    """Whether a query sees a key, [1, 1, T, S], or [B, 1, T, S] with segments."""
    visible = jnp.tri(length, dtype=bool)[None, None]
    if segment_ids is None:
        return visible
    q_ids_BT, k_ids_BS = segment_ids
    return visible & (q_ids_BT[:, None, :, None] == k_ids_BS[:, None, None, :])


def _scaled(q: jax.Array) -> jax.Array:
    return q.astype(jnp.float32) * q.shape[-1] ** -0.5


def _heads_first(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, H, K] to float32 [B, H, T, K], written out: otherwise each block would transpose its part again."""
    return jax.lax.optimization_barrier(tuple(x.astype(jnp.float32).swapaxes(1, 2) for x in arrays))


def _heads_third(blocks_BHTK: list[jax.Array], dtype: Any) -> jax.Array:
    """Blocks [B, H, T, K] to one array [B, T, H, K]."""
    return jnp.concatenate(blocks_BHTK, axis=2).swapaxes(1, 2).astype(dtype)
