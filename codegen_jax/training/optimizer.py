"""AdamW as the authors ran it: clip, Adam, decoupled weight decay, warmup + half-cosine + flat tail."""

import jax
import jax.numpy as jnp
import optax

from codegen_jax.config import OptimizerConfig
from codegen_jax.model.codegen import Params


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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimizer chain, in the authors' order."""
    return optax.chain(
        optax.stateless(lambda gradients, _: clip_by_global_norm(gradients, config.clip_norm)),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(config, params)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
