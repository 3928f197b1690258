"""AdamW as the authors ran it: clip, Adam, decoupled weight decay, warmup + half-cosine + flat tail."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from codegen_jax.config import OptimizerConfig
from codegen_jax.model.codegen import Params
from codegen_jax.training.guard import update_if


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of update number `count`, which starts at 0 (jaxformer's utils.py).

    Linear from 0 over warmup_steps, then a half-cosine over decay_steps counted from the end of warmup, then constant.
    """
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    floor = config.end_learning_rate / config.learning_rate if config.learning_rate else 0.0
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.decay_steps, alpha=floor)
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def decay_mask(config: OptimizerConfig, params: Params) -> Params:
    """Return True for each parameter that is decayed.

    kernels: matrices and embedding tables. jaxformer: also everything with a layer axis; its code tries to exclude
    LayerNorms and biases with `ndim > 1`, but those in blocks are stacked over layers and have two dimensions.
    """

    def is_decayed(path: jax.tree_util.KeyPath, leaf: jax.Array) -> bool:
        is_stacked = path[0] == jax.tree_util.DictKey("blocks")
        return leaf.ndim - (is_stacked and config.decay_mask == "kernels") > 1

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def clip_by_global_norm(gradients: Params, max_norm: float) -> Params:
    """Scale all gradients by one factor so that their global norm is at most max_norm.

    optax divides each element by the norm. XLA considers a division too expensive to recompute in both moment updates,
    so it materializes the quotients as a second gradient (1.3 GiB at 350M). A product is recomputed instead.
    """
    factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradients))
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


def scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, with moments that a bad step (see `guard`) leaves as they are.

    The updates are computed from the moments that are kept. If they were computed from the moments before this choice,
    XLA on CPU would compute those twice, and copy all old moments first (2.7 GiB at 350M).
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def update(updates: Params, state: Any, params: Params = None, *, good: jax.Array) -> tuple[Params, Any]:
        state = update_if(good, adam.update(updates, state)[1], state)
        mu = optax.tree.bias_correction(state.mu, config.b1, state.count)
        nu = optax.tree.bias_correction(state.nu, config.b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.eps), mu, nu), state

    return optax.GradientTransformationExtraArgs(adam.init, update)  # pyright: ignore[reportArgumentType]


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer chain, in the authors' order; its `update` takes `good`, whether the step is good."""
    return optax.chain(
        optax.stateless(lambda gradients, _: clip_by_global_norm(gradients, config.clip_norm)),
        scale_by_adam(config),
        optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(config, params)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
