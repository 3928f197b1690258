"""From logits to the next token. All functions take any leading axes; V is the vocabulary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Knobs(NamedTuple):
    """How tokens are drawn; scalars, which may change without compiling anew.

    Attributes:
        temperature: above 0; what divides the logits.
        top_k: number of ids kept; 0 keeps all.
        top_p: the smallest set of ids with at least this probability is kept; 1 keeps all.
        min_p: ids at least this likely relative to the likeliest are kept; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of ids that were seen; 1 does nothing.
    """

    temperature: jax.Array | np.number
    top_k: jax.Array | np.number
    top_p: jax.Array | np.number
    min_p: jax.Array | np.number
    repetition_penalty: jax.Array | np.number


def penalize(logits_V: jax.Array, seen_V: jax.Array, penalty: jax.Array | np.number) -> jax.Array:
    """Make ids that were seen less likely, as transformers does (arXiv 1909.05858, section 4.1)."""
    return jnp.where(seen_V, jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


def cut(logits_V: jax.Array, knobs: Knobs) -> jax.Array:
    """logits / temperature, -inf where top_k, then top_p, or min_p leave an id out; ties with the last stay."""
    logits_V = logits_V / knobs.temperature
    descending_V = -jnp.sort(-logits_V, axis=-1)
    in_top_k = (knobs.top_k == 0) | (jnp.arange(logits_V.shape[-1]) < knobs.top_k)
    p_V = jax.nn.softmax(jnp.where(in_top_k, descending_V, -jnp.inf), axis=-1)
    mass_before_V = jnp.cumsum(p_V, axis=-1) - p_V
    kept_V = in_top_k & ((mass_before_V < knobs.top_p) | (knobs.top_p >= 1)) & (p_V >= knobs.min_p * p_V[..., :1])
    threshold = jnp.min(jnp.where(kept_V, descending_V, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_V >= threshold, logits_V, -jnp.inf)


def draw(logits_V: jax.Array, key: jax.Array, knobs: Knobs) -> jax.Array:
    """One id, int32: the largest of the kept logits with Gumbel noise, which is a draw from their softmax.

    The noise depends on the key alone. So two distributions that are alike mostly give the same id for the same key,
    and a draft's guess of an id is right whenever it is the one drawn here: speculation changes no result.
    """
    return jax.random.categorical(key, cut(logits_V, knobs))
