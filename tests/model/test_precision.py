"""Every float32 matrix product requests float32 precision, forward and backward, in training and in decoding."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.inference.decode_weights import arrange_params
from codegen_jax.inference.decoder import Past, empty_cache, hidden, logits
from codegen_jax.model.codegen import init_params
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import abstract_batch, abstract_state, make_eval_step, make_train_step
from tests.runs import tiny_run


def training_programs(dtype):
    config = tiny_run(model={"dtype": dtype}, training={"gradient_accumulation_steps": 2}, mesh=MeshConfig(1, 1, 1))
    run = resolve(config, make_mesh(config.mesh, jax.devices()[:1]))
    state, batch = abstract_state(run), abstract_batch(run)
    with jax.set_mesh(run.mesh):
        return make_train_step(run).lower(state, batch), make_eval_step(run).lower(state.params, batch, None)


def decoding_programs(dtype):
    config = replace(tiny_run().model, dtype=dtype)
    weights = arrange_params(init_params(config, seed=0), config=config, groups=1)

    def two_rows(weights, tokens_BT):
        _, cache = hidden(weights, config, tokens_BT)
        length_B = jnp.full(2, tokens_BT.shape[1])
        past = Past(cache, empty_cache(config, 2, 8), length_B)
        return logits(weights, hidden(weights, config, tokens_BT[:, :1], past, length_B)[0])

    return (jax.jit(two_rows).lower(weights, jnp.zeros((2, 8), jnp.int32)),)


def products(programs):
    """The operand shapes of each product, and whether it requests full float32 precision."""
    lines = [line for program in programs for line in program.as_text().splitlines() if "dot_general" in line]
    return [(re.search(r": \((.*)\) ->", line)[1], "precision = [HIGHEST, HIGHEST]" in line) for line in lines]


@pytest.mark.parametrize("programs", [training_programs, decoding_programs])
def test_float32_products_request_full_precision_and_bfloat16_products_do_not(programs):
    float32, bfloat16 = products(programs("float32")), products(programs("bfloat16"))
    assert len(float32) >= 10 and all(highest for _, highest in float32)
    # except for the exact product with a permutation [K, K] that finds each channel's partner (rotary.py)
    assert len(bfloat16) >= 10 and not any(highest for shapes, highest in bfloat16 if "tensor<8x8x" not in shapes)
