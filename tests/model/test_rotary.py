"""Rotary position embeddings."""

import jax.numpy as jnp
import numpy as np

from codegen_jax.model.rotary import rotary_angles, rotate


def test_half_split_rotation_is_the_interleaved_one_with_permuted_channels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 2, 12))
    order = np.r_[0:8:2, 1:8:2, 8:12]  # maps the pairs (2i, 2i+1) to (i, i+4)
    # GPT-J's definition in float64, one pair at a time
    expected = x.copy()
    for t, i in np.ndindex(5, 4):
        angle = t * 10000 ** (-2 * i / 8)
        a, b = x[0, t, :, 2 * i], x[0, t, :, 2 * i + 1]
        expected[0, t, :, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
        expected[0, t, :, 2 * i + 1] = b * np.cos(angle) + a * np.sin(angle)
    actual = rotate(jnp.float32(x[..., order]), rotary_angles(jnp.arange(5)[None], 8))
    np.testing.assert_allclose(actual, expected[..., order], rtol=1e-5, atol=1e-6)


def test_scores_depend_on_relative_positions_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.float32(rng.normal(size=(1, 1, 1, 16))) for _ in range(2))

    def score(query_position, key_position):
        q_angles, k_angles = (rotary_angles(jnp.array([[p]]), 16) for p in (query_position, key_position))
        return float((rotate(q, q_angles) * rotate(k, k_angles)).sum())

    np.testing.assert_allclose(score(9, 4), score(1009, 1004), rtol=1e-3)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_angles_are_float32_at_long_positions():
    # bfloat16 would round 1001 to 1000
    angle = rotary_angles(jnp.array([[1001]]), 4)[0, 0, 0]
    assert angle.dtype == jnp.float32 and angle == 1001
