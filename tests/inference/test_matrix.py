"""Products with matrices in the compute dtype and in int8."""

import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.inference import matrix
from codegen_jax.inference.matrix import Matrix, linear


@pytest.mark.parametrize("kind", ["cpu", "TPU v4"])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_an_int8_product_differs_only_by_the_rounding_of_the_weights(rows, kind, monkeypatch):
    monkeypatch.setattr(matrix, "device_kind", lambda: kind)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, 64)).astype(np.float32), rng.normal(size=(32, 64)).astype(np.float32)
    scale = np.abs(w).max(1) / 127
    values = np.rint(w / scale[:, None])
    exact = x @ (values * scale[:, None]).T
    found = linear(jnp.array(x), Matrix(jnp.int8(values), jnp.array(scale)))
    np.testing.assert_allclose(found, exact, atol=2e-4 * np.abs(exact).max())
    assert np.abs(exact - x @ w.T).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_bfloat16_product_is_summed_in_float32(rows):
    rng = np.random.default_rng(0)
    x, w = (jnp.bfloat16(rng.normal(size=shape)) for shape in ((rows, 64), (32, 64)))
    exact = np.float32(x) @ np.float32(w).T
    found = linear(x, Matrix(w))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_on_a_cpu_activations_are_rounded_to_a_254th_of_an_int8_step(monkeypatch):
    monkeypatch.setattr(matrix, "device_kind", lambda: "cpu")
    x = np.float32([[127, *np.linspace(-2, 2, 999)]])
    found = linear(jnp.array(x), Matrix(jnp.eye(1000, dtype=jnp.int8), jnp.ones(1000)))
    np.testing.assert_allclose(found, x, rtol=0, atol=0.501 / 254)
