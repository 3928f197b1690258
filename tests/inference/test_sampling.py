import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.inference.sampling import sample

LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


def frequencies(temperature=1.0, top_p=1.0, top_k=0, draws=20_000):
    keys = jax.random.split(jax.random.key(0), draws)
    ids = sample(jnp.tile(jnp.float32(LOGITS), (draws, 1)), keys, temperature, top_p, top_k)
    return np.bincount(ids, minlength=4) / draws


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, np.array([16, 9, 4, 1]) / 30),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),  # 0.4 alone is not enough
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),  # top p of what top k leaves
        ({"temperature": 1e-4}, [1, 0, 0, 0]),
    ],
)
def test_draws_have_the_exact_probabilities(options, expected):
    # four standard errors of the largest probability
    np.testing.assert_allclose(frequencies(**options), expected, atol=4 * (0.25 / 20_000) ** 0.5)


def test_a_row_does_not_depend_on_the_others():
    keys = jax.random.split(jax.random.key(1), 5)
    logits = jnp.float32(np.random.default_rng(0).normal(size=(5, 50)))
    together = sample(logits, keys, 1.0, 0.9, 20)
    alone = [int(sample(logits[i : i + 1], keys[i : i + 1], 1.0, 0.9, 20)[0]) for i in range(5)]
    assert together.tolist() == alone
