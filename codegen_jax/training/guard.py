"""Detect, skip and count steps whose update would harm the weights, inside the jitted step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.99  # decay of the running statistics: about 100 steps
SETTLED = 100  # accepted steps before the statistics are trusted


class Guard(NamedTuple):
    """Statistics of the steps so far; all scalars.

    Attributes:
        bad_steps: consecutive skipped steps up to now, int32.
        skipped: skipped steps in the whole run, int32.
        accepted: steps not skipped, int32.
        mean: running mean of the gradient norm over accepted steps, float32.
        square: running mean of its square, float32.
    """

    bad_steps: jax.Array
    skipped: jax.Array
    accepted: jax.Array
    mean: jax.Array
    square: jax.Array

    @classmethod
    def new(cls) -> "Guard":
        count, statistic = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return cls(count, count, count, statistic, statistic)


def judge(guard: Guard, loss: jax.Array, grad_norm: jax.Array, spike_sigmas: float | None) -> tuple[jax.Array, Guard]:
    """Return whether a step is good (bool), and the updated guard.

    A step is bad if its loss or gradient norm is not finite, or if its norm is more than spike_sigmas standard
    deviations above the running mean.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spike_sigmas is not None:
        weight = 1 - DECAY ** guard.accepted.astype(jnp.float32)  # bias correction; the initial 0 / 0 is not used
        mean, square = guard.mean / weight, guard.square / weight
        limit = mean + spike_sigmas * jnp.sqrt(jnp.maximum(square - mean**2, 0.0))
        good &= (guard.accepted < SETTLED) | (grad_norm <= limit)
    mean, square = (
        DECAY * old + (1 - DECAY) * new for old, new in ((guard.mean, grad_norm), (guard.square, grad_norm**2))
    )
    after_good = Guard(jnp.zeros_like(guard.bad_steps), guard.skipped, guard.accepted + 1, mean, square)
    after_bad = guard._replace(bad_steps=guard.bad_steps + 1, skipped=guard.skipped + 1)
    return good, jax.tree.map(lambda a, b: jnp.where(good, a, b), after_good, after_bad)


def update_if(good: jax.Array, new: Any, old: Any) -> Any:
    """New values after a good step, old ones after a bad one; integer counters always advance, as the data does."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o) if jnp.issubdtype(n.dtype, jnp.floating) else n, new, old)
