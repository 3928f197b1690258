"""AdamW as the authors ran it: clip, Adam, decoupled decay, warm-up + half-cosine + flat tail."""

import jax
import optax

from codegen_jax.config import OptimizerConfig
from codegen_jax.model.codegen import Params

KERNELS = {"embedding", "qkv", "attention_out", "fc_in", "fc_out", "head"}


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of update number `count`, which starts at 0 (jaxformer's utils.py).

    Linear from 0 over warmup_steps, then a half-cosine over decay_steps counted after the warm-up, then constant.
    """
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    floor = config.end_learning_rate / config.learning_rate if config.learning_rate else 0.0
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.decay_steps, alpha=floor)
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def decay_mask(config: OptimizerConfig, params: Params) -> Params:
    """True for each parameter that is decayed, by name.

    kernels: matrices and embeddings. jaxformer: those and whatever has a layer axis; its code means to leave out
    LayerNorms and biases by `ndim > 1`, but stacking gives the blocks' two dimensions.
    """

    def is_decayed(path: jax.tree_util.KeyPath, _: jax.Array) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return names[-1] in KERNELS or (config.decay_mask == "jaxformer" and names[0] == "blocks")

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The chain, in the authors' order."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(config, params)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
