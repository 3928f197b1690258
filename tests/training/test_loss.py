"""The chunked loss equals the dense form in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.training.loss import count_targets, next_token_loss

B, T, D, V = 3, 10, 8, 29


def dense(x, head, bias, targets, z_loss):
    """The loss by definition, with all logits at once."""
    logits = x @ head + bias
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(targets >= 0, log_z - target + z_loss * log_z**2, 0.0))


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x, head, bias = (jnp.float32(rng.normal(size=shape)) for shape in ((B, T, D), (D, V), (V,)))
    targets = rng.integers(0, V, (B, T))
    targets[1, 4:] = -1
    return x, head, bias, jnp.int32(targets)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 512])  # 4 does not divide T
def test_value_and_gradients_equal_the_dense_form(inputs, z_loss, chunk_size):
    *arrays, targets = inputs

    def chunked(*arrays):
        return 2.5 * next_token_loss(*arrays, targets, scale=0.5, z_loss=z_loss, chunk_size=chunk_size).total

    expected = jax.value_and_grad(lambda *a: 1.25 * dense(*a, targets, z_loss), argnums=(0, 1, 2))(*arrays)
    actual = jax.value_and_grad(chunked, argnums=(0, 1, 2))(*arrays)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), actual, expected)


def test_cross_entropy_excludes_z_loss(inputs):
    loss = next_token_loss(*inputs, z_loss=0.1)
    np.testing.assert_allclose(loss.cross_entropy, dense(*inputs, 0.0), rtol=1e-6)
    np.testing.assert_allclose(loss.total, dense(*inputs, 0.1), rtol=1e-6)


def test_negative_targets_are_ignored(inputs):
    x, head, bias, targets = inputs
    gradient = jax.grad(lambda x: next_token_loss(x, head, bias, targets).total)(x)
    assert not gradient[1, 4:].any() and gradient[1, :4].any()
    assert count_targets(targets) == B * T - 6


def test_full_logits_are_never_materialized(inputs):
    def temporary_bytes(chunk_size):
        x, head, bias = jnp.zeros((2, 64, D)), jnp.zeros((D, 1000)), jnp.zeros(1000)

        def loss(x):
            return next_token_loss(x, head, bias, jnp.zeros((2, 64), jnp.int32), chunk_size=chunk_size).total

        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    full_logits = 4 * 2 * 64 * 1000
    assert temporary_bytes(8) < full_logits < temporary_bytes(64)


def test_loss_is_float32_for_bfloat16_states(inputs):
    x, head, bias, targets = inputs
    loss, (d_x, d_head) = jax.value_and_grad(
        lambda x, head: next_token_loss(x, head, bias, targets).total, argnums=(0, 1)
    )(x.astype(jnp.bfloat16), head)
    assert (loss.dtype, d_x.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(loss, dense(x, head, bias, targets, 0.0), rtol=2e-2)
