"""From logits to the next token. All functions take any leading axes; V is the vocabulary."""

from dataclasses import fields

import jax
import jax.numpy as jnp

from codegen_jax.inference.options import Sampling

jax.tree_util.register_dataclass(Sampling, [field.name for field in fields(Sampling)], [])


def penalize(logits_V: jax.Array, seen_V: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Make ids that were seen less likely, as transformers does (arXiv 1909.05858, section 4.1)."""
    return jnp.where(seen_V, jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


def cut(logits_V: jax.Array, sampling: Sampling) -> jax.Array:
    """logits / temperature, -inf where top_k, then top_p, or min_p leave an id out; ties with the last stay."""
    logits_V = logits_V / sampling.temperature
    descending_V = -jnp.sort(-logits_V, axis=-1)
    in_top_k = (sampling.top_k == 0) | (jnp.arange(logits_V.shape[-1]) < sampling.top_k)
    p_V = jax.nn.softmax(jnp.where(in_top_k, descending_V, -jnp.inf), axis=-1)
    mass_before_V = jnp.cumsum(p_V, axis=-1) - p_V
    kept_V = (
        in_top_k & ((mass_before_V < sampling.top_p) | (sampling.top_p >= 1)) & (p_V >= sampling.min_p * p_V[..., :1])
    )
    threshold = jnp.min(jnp.where(kept_V, descending_V, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_V >= threshold, logits_V, -jnp.inf)


def draw(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One id, int32: the largest of the kept logits with Gumbel noise, which is a draw from their softmax.

    The noise depends on the key alone. So two distributions that are alike mostly give the same id for the same key,
    and a draft's guess of an id is right whenever it is the one drawn here: speculation changes no result.
    """
    return jax.random.categorical(key, cut(logits_V, sampling))
