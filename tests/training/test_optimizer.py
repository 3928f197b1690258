"""Learning rate, weight decay, clipping and AdamW updates match the authors' recipe and NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig, OptimizerConfig
from codegen_jax.model.codegen import abstract_params
from codegen_jax.training.optimizer import clip_by_global_norm, decay_mask, learning_rate_schedule, make_optimizer

PAPER_350M = OptimizerConfig(3e-4, 3e-5, warmup_steps=3000, decay_steps=300_000, weight_decay=0.1)

KERNELS = [
    "blocks.attention_out",
    "blocks.fc_in",
    "blocks.fc_out",
    "blocks.key",
    "blocks.query",
    "blocks.value",
    "embedding",
    "head",
]
STACKED = ["blocks.fc_in_bias", "blocks.fc_out_bias", "blocks.ln.bias", "blocks.ln.scale"]


def authors_learning_rate(step):
    """The schedule of the published 350M NL config."""
    if step < 3000:
        return 3e-4 * step / 3000
    if step < 303_000:
        return 3e-5 + (3e-4 - 3e-5) * (1 + math.cos(math.pi * (step - 3000) / 300_000)) / 2
    return 3e-5


@pytest.mark.parametrize("step", [0, 1, 1500, 2999, 3000, 3001, 100_000, 153_000, 302_999, 303_000, 349_999])
def test_learning_rate_matches_the_authors(step):
    assert float(learning_rate_schedule(PAPER_350M)(step)) == pytest.approx(authors_learning_rate(step), rel=1e-4)


@pytest.mark.parametrize(("mask", "names"), [("kernels", KERNELS), ("jaxformer", sorted(KERNELS + STACKED))])
def test_the_mask_selects_the_decayed_parameters(mask, names):
    params = abstract_params(CodeGenConfig(2, 16, 4, 2))
    config = dataclasses.replace(PAPER_350M, decay_mask=mask)
    decayed = jax.tree_util.tree_leaves_with_path(decay_mask(config, params))
    assert sorted(jax.tree_util.keystr(path, simple=True, separator=".") for path, d in decayed if d) == names


def test_clipping_scales_to_the_maximum_norm_and_keeps_small_gradients():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped = clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-6)
    assert clip_by_global_norm(gradients, 5.1)["b"] == 4.0
    assert not clip_by_global_norm(jax.tree.map(jnp.zeros_like, gradients), 1.0)["a"].any()


def test_updates_match_adamw_in_numpy():
    config = OptimizerConfig(1e-2, 1e-3, warmup_steps=2, decay_steps=5, weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    names = {"head": (3, 4), "head_bias": (4,)}
    params = {name: rng.normal(size=shape) for name, shape in names.items()}
    moments = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in names.items()}
    optimizer = make_optimizer(config)
    actual = {name: jnp.float32(p) for name, p in params.items()}
    state = optimizer.init(actual)
    for count in range(9):
        gradients = {name: rng.normal(size=shape) for name, shape in names.items()}
        updates, state = optimizer.update({n: jnp.float32(g) for n, g in gradients.items()}, state, actual, good=True)
        actual = jax.tree.map(jnp.add, actual, updates)

        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        rate = float(learning_rate_schedule(config)(count))
        for name, g in gradients.items():
            g = g / max(norm, 1.0)
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[name] = m, v
            step = m / (1 - 0.9 ** (count + 1)) / (np.sqrt(v / (1 - 0.999 ** (count + 1))) + 1e-8)
            decay = 0.1 * params[name] if name == "head" else 0.0
            params[name] = params[name] - rate * (step + decay)
    for name in names:
        np.testing.assert_allclose(actual[name], params[name], rtol=1e-4, atol=1e-6)
