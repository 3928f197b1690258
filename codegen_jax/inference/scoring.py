"""The log-probabilities that a model assigns to given texts."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from codegen_jax.config import CodeGenConfig
from codegen_jax.inference.decode_weights import DecodeWeights
from codegen_jax.inference.decoder import hidden, logits


@dataclass(frozen=True)
class Score:
    """The log-probabilities that a model assigns to a text.

    Attributes:
        token_ids: ids of the text.
        logprobs: log-probability of each id except the first, given the preceding ids.
        top_logprobs: at the same positions, the most likely ids with their log-probabilities.
    """

    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


@partial(jax.jit, static_argnames=("config", "top"))
def logprobs(
    weights: DecodeWeights, tokens_BT: jax.Array, *, config: CodeGenConfig, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities [B, T - 1] of ids given the preceding ids, and the `top` likeliest at the same positions."""
    x_BTD, _ = hidden(weights, config, tokens_BT[:, :-1])

    def score_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_TD, next_T = row  # one row's logits at a time
        logprobs_TV = jax.nn.log_softmax(logits(weights, x_TD))
        return jnp.take_along_axis(logprobs_TV, next_T[:, None], axis=-1)[:, 0], *jax.lax.top_k(logprobs_TV, top)

    return jax.lax.map(score_row, (x_BTD, tokens_BT[:, 1:]))
