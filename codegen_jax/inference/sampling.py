"""From logits to the next token. All functions accept any leading axes; V is the vocabulary."""

from dataclasses import fields

import jax
import jax.numpy as jnp

from codegen_jax.inference.options import Sampling

jax.tree_util.register_dataclass(Sampling, [field.name for field in fields(Sampling)], [])


def penalize(logits_V: jax.Array, seen_V: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Make ids that have already occurred less likely, as transformers does (arXiv 1909.05858, section 4.1)."""
    return jnp.where(seen_V, jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


def filter_logits(logits_V: jax.Array, sampling: Sampling) -> jax.Array:
    """Divide logits by the temperature, and set ids excluded by top_k, top_p (applied after top_k) or min_p to -inf.

    Ids that tie with the least likely id that is kept are kept, too.
    """
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


def sample_token(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample an int32 id: the argmax of the kept logits plus Gumbel noise, which is a sample from their softmax.

    The noise depends only on the key, so similar distributions mostly give the same id for the same key. A draft token
    is accepted only if it equals the id sampled here, so speculative decoding does not change the result.
    """
    return jax.random.categorical(key, filter_logits(logits_V, sampling))
