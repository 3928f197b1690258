"""Sampled tokens have the probabilities that the options define."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.inference.options import Sampling
from codegen_jax.inference.sampling import filter_logits, sample_token

LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


def frequencies(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, count=20_000):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids = jax.vmap(lambda key: sample_token(jnp.float32(LOGITS), key, sampling))(
        jax.random.split(jax.random.key(0), count)
    )
    return np.bincount(ids, minlength=4) / count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, np.array([16, 9, 4, 1]) / 30),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),  # 0.4 alone is not enough
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # top_p applies to what top_k keeps
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),  # at least 0.6 * 0.4
        ({"min_p": 0.6, "temperature": 2.0}, np.sqrt([4, 3, 2, 0]) / np.sqrt([4, 3, 2]).sum()),
        ({"temperature": 1e-4}, [1, 0, 0, 0]),
    ],
)
def test_samples_have_the_exact_probabilities(options, expected):
    # four standard errors of the largest probability
    np.testing.assert_allclose(frequencies(**options), expected, atol=4 * (0.25 / 20_000) ** 0.5)


def test_top_p_of_one_keeps_even_the_least_likely_id():
    # in float32 the mass before the last two is already 1
    kept = filter_logits(jnp.float32([0, -20, -40]), Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0))
    assert np.isfinite(kept).all()
