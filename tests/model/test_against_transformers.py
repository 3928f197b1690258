"""Our network compared with transformers' CodeGen, with random float32 weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codegen_jax.config import CodeGenConfig
from codegen_jax.model.codegen import abstract_params, module
from codegen_jax.weights import huggingface_layout as layout
from codegen_jax.weights.base import load_params
from codegen_jax.weights.huggingface_layout import HuggingFaceWeights
from tests.peers import logits, peer, state

SHAPES = [  # seed, n_layer, n_embd, n_head, rotary_dim
    (0, 2, 32, 4, 4),
    (1, 3, 64, 4, 16),  # every channel is rotated
    (2, 1, 64, 8, 2),
    (3, 2, 160, 8, 16),  # head_dim 20 is not a power of two
    (4, 2, 256, 4, 32),
]


def pair(seed, n_layer, n_embd, n_head, rotary_dim, mp_num=4):
    """A random transformers network, and ours with the same weights."""
    sizes = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_head, rotary_dim=rotary_dim, vocab_size=97, n_positions=64)
    theirs, config = peer(seed, **sizes), CodeGenConfig(**sizes, dtype="float32")
    params = load_params(HuggingFaceWeights(state(theirs), config, mp_num), abstract_params(config))
    return theirs, module(config, params)


def random_tokens(seed, shape):
    return np.random.default_rng(seed).integers(0, 97, shape)


def relative_difference(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_full_sequences_match(shape):
    theirs, ours = pair(*shape)
    tokens = random_tokens(shape[0], (2, 33))
    assert relative_difference(ours(tokens), logits(theirs, tokens)) < 1e-4


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_logits_of_left_padded_batches_match(shape):
    theirs, ours = pair(*shape)
    tokens = random_tokens(shape[0], (3, 20))
    mask = np.arange(20) >= np.array([[0], [7], [19]])
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    expected = logits(theirs, tokens, attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions))
    actual = np.asarray(ours(tokens, segment_ids_BT=jnp.int32(mask), positions_BT=positions))
    assert relative_difference(actual[mask], expected[mask]) < 1e-4


def test_wrong_mp_num_is_detected():
    theirs, ours = pair(0, 2, 64, 8, 4, mp_num=8)
    tokens = random_tokens(0, (1, 16))
    assert relative_difference(ours(tokens), logits(theirs, tokens)) > 0.05


def test_wrong_order_of_query_key_and_value_is_detected(monkeypatch):
    monkeypatch.setattr(layout, "PROJECTIONS", ("blocks.query", "blocks.key", "blocks.value"))
    theirs, ours = pair(*SHAPES[0])
    tokens = random_tokens(0, (1, 16))
    assert relative_difference(ours(tokens), logits(theirs, tokens)) > 0.05
