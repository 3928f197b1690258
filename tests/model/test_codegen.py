"""The network: parameter counts, causality, remat, segments, dtypes and initialization."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig
from codegen_jax.model.codegen import REMAT_POLICIES, abstract_params, init_params, module, param_axes

TINY = CodeGenConfig(n_layer=3, n_embd=32, n_head=4, rotary_dim=4, vocab_size=50, n_positions=64, dtype="float32")


def tokens(seed=0, shape=(2, 12)):
    return np.random.default_rng(seed).integers(0, TINY.vocab_size, shape).astype(np.int32)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ((20, 1024, 16, 32), 356_712_448),
        ((32, 2560, 32, 64), 2_779_356_160),
        ((33, 4096, 16, 64), 7_064_213_504),
        ((34, 6144, 24, 64), 16_032_155_648),
    ],
)
def test_parameter_counts_match_the_released_models(architecture, count):
    config = CodeGenConfig(*architecture)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config))) == config.n_params == count


def test_logits_depend_on_all_earlier_tokens_and_no_later_ones():
    params = init_params(TINY, seed=0)
    embeddings = params["embedding"][tokens(shape=(1, 8))]

    def logits_at(embeddings, t):
        # token i reads row i of the table, so the table's gradient is the gradient of the inputs
        model = module(TINY, params | {"embedding": embeddings})
        return model(jnp.arange(8)[None])[0, t].sum()

    for t in range(8):
        gradient = jax.grad(logits_at)(embeddings[0], t)
        has_gradient = np.abs(gradient).max(axis=-1) > 0
        assert has_gradient[: t + 1].all() and not has_gradient[t + 1 :].any()


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_remat_changes_neither_value_nor_gradient(remat):
    params = init_params(TINY, seed=0)

    def value(params, remat):
        x_BTD = module(TINY, params).hidden(tokens(), remat=remat)
        return (x_BTD * weights_BTD).sum()  # a LayerNorm's sum of squares would be constant, and its gradient noise

    weights_BTD = np.random.default_rng(1).normal(size=(2, 12, TINY.n_embd))

    expected = jax.value_and_grad(value)(params, "none")
    actual = jax.value_and_grad(value)(params, remat)
    # devices may sum in different orders, so zeros are only approximate, relative to the largest value
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    jax.tree.map(equal, actual, expected)


def test_segments_do_not_attend_to_each_other():
    model = module(TINY, init_params(TINY, seed=0))
    first, second = tokens(1, (1, 5)), tokens(2, (1, 7))
    packed = model(
        np.concatenate([first, second], axis=1),
        segment_ids_BT=jnp.array([[0] * 5 + [1] * 7]),
        positions_BT=jnp.array([[*range(5), *range(7)]]),
    )
    np.testing.assert_allclose(packed[:, :5], model(first), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:], model(second), rtol=1e-4, atol=1e-5)


def test_bfloat16_model_has_bfloat16_states_and_float32_logits():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = init_params(config, seed=0)
    model = module(config, params)
    x_BTD = model.hidden(tokens())
    assert x_BTD.dtype == jnp.bfloat16 and model.logits(x_BTD).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = module(TINY, params)(tokens())
    assert 0 < np.abs(model(tokens()) - exact).max() < 0.05 * np.abs(exact).max()


def test_jaxformer_initialization_has_the_authors_standard_deviations():
    # truncation at two sigma shrinks the standard deviation to 0.8796 of its nominal value
    config = CodeGenConfig(n_layer=4, n_embd=256, n_head=4, rotary_dim=32, vocab_size=1000)
    params = init_params(config, seed=0)
    nominal = {
        "embedding": 1000**-0.5,
        "head": 256**-0.5,
        "query": 256**-0.5,
        "fc_in": 256**-0.5,
        "attention_out": 2 / 4 * 256**-0.5,
        "fc_out": 2 / 4 * 256**-0.5,
    }
    flat = params | params["blocks"]
    for name, std in nominal.items():
        assert flat[name].std() == pytest.approx(0.8796 * std, rel=0.02), name
        assert np.abs(flat[name]).max() <= 2 * std * 1.0001
    assert not any(flat[name].any() for name in ("head_bias", "fc_in_bias", "fc_out_bias"))


def test_huggingface_initialization_is_normal():
    params = init_params(dataclasses.replace(TINY, n_embd=256, init="huggingface"), seed=0)
    for kernel in (params["embedding"], params["head"], params["blocks"]["fc_out"]):
        assert kernel.std() == pytest.approx(0.02, rel=0.05)


def test_every_parameter_axis_has_a_name():
    shapes, axes = abstract_params(TINY), param_axes(TINY)
    is_axes = lambda node: isinstance(node, tuple)
    jax.tree.map(lambda names, shape: None, axes, shapes, is_leaf=is_axes)  # raises if the trees differ
    for names, shape in zip(jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(shapes), strict=True):
        assert len(names) == len(shape.shape)
