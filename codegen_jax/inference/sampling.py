"""From logits to the next token."""

import jax
import jax.numpy as jnp


def sample(
    logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array, top_p: jax.Array, top_k: jax.Array
) -> jax.Array:
    """Draw one id a row, int32 [B], from softmax(logits / temperature) cut to its top k and then its top p.

    Args:
        logits_BV: float32.
        keys_B: one random key a row, so that a row's draw does not depend on the others.
        temperature: above 0; smaller is greedier.
        top_p: the smallest set of ids with at least this probability is kept; 1 keeps all.
        top_k: number of ids kept; 0 keeps all.
    """
    logits_BV = logits_BV / temperature
    descending_BV = -jnp.sort(-logits_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1])
    in_top_k = (top_k == 0) | (rank_V < top_k)
    p_BV = jax.nn.softmax(jnp.where(in_top_k, descending_BV, -jnp.inf), axis=-1)
    mass_before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    kept_BV = in_top_k & (mass_before_BV < top_p)
    threshold_B1 = jnp.min(jnp.where(kept_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
    return jax.vmap(jax.random.categorical)(keys_B, jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf))
