"""Each attention backend matches the definition, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.errors import UserError
from codegen_jax.model import attention, attention_tpu
from codegen_jax.model.attention import causal_attention, choose_backend
from codegen_jax.model.precision import products_of


def reference(q, k, v, visible):
    """Attention computed row by row in NumPy, in float64."""
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(visible[b, t])
        scores = k[b, keys, h] @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, keys, h]
    return out


def random_qkv(T=6, S=6):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, n, 3, 8)) for n in (T, S, S)]


def test_matches_the_definition():
    q, k, v = random_qkv()
    causal = np.broadcast_to(np.tril(np.ones((6, 6), bool)), (2, 6, 6))
    actual = causal_attention(*map(jnp.float32, (q, k, v)))
    np.testing.assert_allclose(actual, reference(q, k, v, causal), rtol=1e-5, atol=1e-6)


def test_queries_attend_only_within_their_segment():
    q, k, v = random_qkv()
    ids = np.array([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 7, 7]])
    visible = np.tril(ids[:, :, None] == ids[:, None, :])
    actual = causal_attention(*map(jnp.float32, (q, k, v)), segment_ids=(jnp.array(ids), jnp.array(ids)))
    np.testing.assert_allclose(actual, reference(q, k, v, visible), rtol=1e-5, atol=1e-6)


def with_gradients(backend, segment_ids, q, k, v, weights):
    def value(q, k, v):
        out = causal_attention(q, k, v, segment_ids=segment_ids, backend=backend)
        return (out * weights).sum(), out

    with products_of(q.dtype):  # the kernels' backward rules need it, as in the training step
        gradients, out = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_attention_in_blocks_matches_full_attention_forward_and_backward(length, segments, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (jax.random.normal(key, (2, length, 2, 16)) for key in keys)
    ids = jnp.where(jnp.arange(length) < length - 20, jnp.cumsum(jnp.arange(length) % 50 == 49), -1)  # padding last
    ids = (ids[None].repeat(2, 0),) * 2 if segments else None
    actual = with_gradients("xla", ids, q, k, v, weights)
    monkeypatch.setattr(attention, "on_cpu", lambda: False)
    for block, full in zip(actual, with_gradients("xla", ids, q, k, v, weights), strict=True):
        np.testing.assert_allclose(block, full, rtol=1e-5, atol=1e-5)


def test_attention_in_blocks_rounds_bfloat16_once():
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (2, 200, 2, 16), jnp.bfloat16) for key in keys]
    expected = with_gradients("xla", None, *(x.astype(jnp.float32) for x in inputs))
    for actual, reference in zip(with_gradients("xla", None, *inputs), expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        difference = jnp.linalg.norm(actual.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
        assert difference < 0.005  # bfloat16 has an 8-bit mantissa


@pytest.mark.parametrize(("backend", "length"), [("pallas", 200), ("splash", 200), ("pallas", 8192)])
def test_kernels_refuse_lengths_that_they_do_not_support(backend, length):
    q = jnp.zeros((1, length, 1, 16))
    with pytest.raises(UserError, match=r"model\.attention: .*(multiple of 128|too long)"):
        causal_attention(q, q, q, backend=backend)


def test_blocks_of_different_sizes_in_the_two_passes_match_the_reference(monkeypatch):
    monkeypatch.setattr(attention_tpu, "BACKWARD_SCORES", 512 * 256)  # 2 blocks; 1 in the forward pass
    inputs = [jax.random.normal(key, (1, 512, 1, 64)) for key in jax.random.split(jax.random.key(0), 4)]
    for actual, reference in zip(with_gradients("pallas", None, *inputs), with_gradients("xla", None, *inputs)):
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_dim", [80, 256])
def test_our_kernels_round_bfloat16_by_less_than_one_percent(head_dim):
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (1, 256, 2, head_dim), jnp.bfloat16) for key in keys]
    expected = with_gradients("xla", None, *(x.astype(jnp.float32) for x in inputs))
    for actual, reference in zip(with_gradients("pallas", None, *inputs), expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        difference = jnp.linalg.norm(actual.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
        assert difference < 0.01  # bfloat16 has an 8-bit mantissa


@pytest.mark.parametrize("backend", ["pallas", "splash"])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 256])  # 350M; 2B; 6B and 16B
def test_kernels_match_the_reference_forward_and_backward(head_dim, segments, backend, monkeypatch):
    monkeypatch.setattr(attention, "SPLASH_BLOCK", 128)  # 2 x 2 tiles: one full, two on the diagonal, one skipped
    for name in ("FORWARD_SCORES", "BACKWARD_SCORES"):  # 2 blocks
        monkeypatch.setattr(attention_tpu, name, 0)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (jax.random.normal(key, (2, 256, 2, head_dim)) for key in keys)
    ids = jnp.cumsum(jnp.arange(256) % 100 == 99) if segments else None
    ids = None if ids is None else (jnp.stack([ids, jnp.roll(ids, 37)]),) * 2
    expected = with_gradients("xla", ids, q, k, v, weights)
    for actual, reference in zip(with_gradients(backend, ids, q, k, v, weights), expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernels need an NVIDIA GPU")
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_cudnn_matches_the_reference_forward_and_backward(head_dim, segments):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (jax.random.normal(key, (2, 256, 2, head_dim), jnp.bfloat16) for key in keys)
    ids = jnp.cumsum(jnp.arange(256) % 100 == 99)[None].repeat(2, 0) if segments else None
    ids = None if ids is None else (ids, ids)
    expected = with_gradients("xla", ids, *(x.astype(jnp.float32) for x in (q, k, v, weights)))
    for actual, reference in zip(with_gradients("cudnn", ids, q, k, v, weights), expected, strict=True):
        difference = jnp.linalg.norm(actual.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
        assert difference < 0.01  # bfloat16 has an 8-bit mantissa


@pytest.mark.parametrize(
    ("kind", "length", "head_dim", "dtype", "expected"),
    [
        ("TPU v4", 2048, 80, "bfloat16", "pallas"),
        ("TPU v4", 2048, 256, "bfloat16", "pallas"),
        ("TPU v4", 4096, 128, "bfloat16", "pallas"),
        ("TPU v4", 2048, 128, "float32", "pallas"),
        ("TPU v4", 2048, 256, "float32", "splash"),
        ("TPU v4", 4096, 64, "float32", "splash"),
        ("TPU v4", 4096, 256, "bfloat16", "splash"),
        ("TPU v4", 8192, 64, "bfloat16", "splash"),
        ("TPU v4", 100, 80, "bfloat16", "xla"),
        ("NVIDIA H200", 2048, 80, "bfloat16", "cudnn"),
        ("NVIDIA H200", 2048, 12, "bfloat16", "xla"),
        ("NVIDIA H200", 2048, 80, "float32", "xla"),
        ("cpu", 2048, 80, "bfloat16", "xla"),
    ],
)
def test_backend_is_chosen_by_device_and_shape(kind, length, head_dim, dtype, expected):
    assert choose_backend(kind, length, head_dim, dtype) == expected
