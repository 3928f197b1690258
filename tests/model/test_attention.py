import jax.numpy as jnp
import numpy as np

from codegen_jax.model.attention import causal_attention


def reference(q, k, v, visible):
    """Row by row in NumPy, float64."""
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


def test_equals_the_definition():
    q, k, v = random_qkv()
    causal = np.broadcast_to(np.tril(np.ones((6, 6), bool)), (2, 6, 6))
    actual = causal_attention(*map(jnp.float32, (q, k, v)))
    np.testing.assert_allclose(actual, reference(q, k, v, causal), rtol=1e-5, atol=1e-6)


def test_a_query_sees_its_own_segment_only():
    q, k, v = random_qkv()
    ids = np.array([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 7, 7]])
    visible = np.tril(ids[:, :, None] == ids[:, None, :])
    actual = causal_attention(*map(jnp.float32, (q, k, v)), segment_ids=(jnp.array(ids), jnp.array(ids)))
    np.testing.assert_allclose(actual, reference(q, k, v, visible), rtol=1e-5, atol=1e-6)


def test_queries_may_start_behind_the_first_key():
    q, k, v = random_qkv(T=2, S=6)
    visible = np.broadcast_to(np.arange(6) <= 3 + np.arange(2)[:, None], (2, 2, 6))
    actual = causal_attention(*map(jnp.float32, (q, k, v)), q_offset=3)
    np.testing.assert_allclose(actual, reference(q, k, v, visible), rtol=1e-5, atol=1e-6)
