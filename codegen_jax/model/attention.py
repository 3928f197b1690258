"""Causal attention behind one function, and the keys and values that decoding keeps.

Axes: L layers, B batch, T queries, S keys, H heads, K head_dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far, written from the left; `length` slots of S are filled."""

    keys_LBSHK: jax.Array
    values_LBSHK: jax.Array
    segment_ids_BS: jax.Array
    length: jax.Array


def causal_attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    q_offset: jax.Array | int = 0,
) -> jax.Array:
    """softmax(q.k / sqrt(head_dim)) v, each query seeing the keys at and before its own place.

    Args:
        q_BTHK: queries, rotated; query t stands at key q_offset + t.
        k_BSHK: keys, rotated.
        v_BSHK: values.
        segment_ids: int32 ids of the queries [B, T] and keys [B, S]; a query sees only keys of its own segment.
        q_offset: place of the first query among the keys.

    Returns:
        [B, T, H, K] in the dtype of v. Scores and softmax are float32, as in the authors' code.
    """
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    scores_BHTS *= q_BTHK.shape[-1] ** -0.5
    q_place_T1 = q_offset + jnp.arange(q_BTHK.shape[1])[:, None]
    visible = jnp.arange(k_BSHK.shape[1]) <= q_place_T1
    if segment_ids is not None:
        q_ids_BT, k_ids_BS = segment_ids
        visible = visible & (q_ids_BT[:, None, :, None] == k_ids_BS[:, None, None, :])
    scores_BHTS = jnp.where(visible, scores_BHTS, jnp.finfo(jnp.float32).min)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(v_BSHK.dtype)
    return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)
