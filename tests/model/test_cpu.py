"""Products for CPUs match JAX's own, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.model.cpu import einsum

# in the last two, transposing dy and the result moves less than transposing x, so both orders of the backward pass run
SHAPES = {
    "BTD,DHK->BTHK": ((2, 24, 16), (16, 4, 8)),
    "BTD,DF->BTF": ((2, 24, 16), (16, 64)),
    "BTHK,HKD->BTD": ((8, 24, 4, 8), (4, 8, 16)),
    "BTF,FD->BTD": ((8, 24, 64), (64, 16)),
}


def with_gradients(product, x, w, weights):
    value = lambda x, w: (product(x, w) * weights).sum()
    return product(x, w), *jax.jit(jax.grad(value, (0, 1)))(x, w)


@pytest.mark.parametrize("equation", SHAPES)
def test_products_match_jax_forward_and_backward(equation):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = (jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES[equation]))
    weights = jax.random.normal(keys[2], jnp.einsum(equation, x, w).shape)
    expected = with_gradients(lambda x, w: jnp.einsum(equation, x, w), x, w, weights)
    for actual, reference in zip(with_gradients(lambda x, w: einsum(equation, x, w), x, w, weights), expected):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("equation", SHAPES)
def test_bfloat16_products_and_gradients_are_exact_sums_rounded_once(equation):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, SHAPES[equation]))
    dy = jax.random.normal(keys[2], jnp.einsum(equation, x, w).shape, jnp.bfloat16)
    actual, gradients = jax.vjp(lambda x, w: einsum(equation, x, w), x, w)
    inputs, result = equation.split("->")
    x_axes, w_axes = inputs.split(",")
    exact = lambda equation, a, b: np.einsum(equation, np.float64(a), np.float64(b))
    dx, dw = jax.jit(gradients)(dy)
    for rounded, value in (
        (actual, exact(equation, x, w)),
        (dx, exact(f"{result},{w_axes}->{x_axes}", dy, w)),
        (dw, exact(f"{x_axes},{result}->{w_axes}", x, dy)),
    ):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(rounded), value, rtol=2**-8, atol=1e-3)
