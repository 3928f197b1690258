"""The second implementation is right, and a proof fails when it should."""

import dataclasses

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from codegen_jax.config import CodeGenConfig
from codegen_jax.conversion import reference
from codegen_jax.conversion.convert import convert
from codegen_jax.conversion.verify import compare, original_of, our_logits, verify
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from tests.peers import logits, peer, save, state


@pytest.mark.parametrize("sizes", [{}, {"n_embd": 96, "n_head": 12, "rotary_dim": 8, "n_layer": 3}])
def test_the_reference_computes_what_transformers_does(sizes):
    model = peer(**sizes)
    sizes = {name: getattr(model.config, name) for name in ("n_layer", "n_embd", "n_head", "rotary_dim", "vocab_size")}
    tokens = np.random.default_rng(0).integers(0, 300, (2, 33))
    ours = reference.logits(reference.TransformersOriginal(state(model), CodeGenConfig(**sizes), 4), tokens)
    theirs = logits(model, tokens)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_scores_of_any_size_give_the_reference_a_softmax():
    config = CodeGenConfig(1, 32, 4, 4, vocab_size=40)
    rng = np.random.default_rng(0)
    h, qkv = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 10, 32), (32, 96)))
    found = reference.attention(h, 100 * qkv, config, 4)
    assert np.isfinite(found).all() and np.abs(found).max() <= 100 * np.abs(h @ qkv).max()


def test_layer_by_layer_is_the_whole_network(tmp_path):
    model = peer()
    tokens = np.random.default_rng(0).integers(0, 300, (2, 33))
    theirs = logits(model, tokens)
    ours = our_logits(open_model(str(save(model, tmp_path / "hf"))), tokens)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def swap_two_heads(tensors):
    w = tensors["transformer.h.1.attn.qkv_proj.weight"]
    w[0:8], w[24:32] = w[24:32].clone(), w[0:8].clone()  # q of the first two groups


def nudge(tensors):
    tensors["transformer.h.0.mlp.fc_in.weight"][3, 4] += 1.0


def a_nan(tensors):
    tensors["lm_head.bias"][5] = float("nan")


@pytest.mark.parametrize("damage", [swap_two_heads, nudge, a_nan])
@pytest.mark.parametrize("proof", ["numpy", "torch"])
def test_weights_that_changed_on_the_way_fail_the_proof(tmp_path, damage, proof):
    folder = save(peer(), tmp_path / "hf")
    convert(str(folder), str(tmp_path / "ours"))
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="disagree"):
        verify(proof, open_model(str(folder)), tmp_path / "ours", "jax")


def test_a_cast_is_tolerated_and_an_exact_copy_is_not_treated_as_one(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    summary = convert(str(folder), str(tmp_path / "cast"), dtype="bfloat16", proof="numpy")
    assert 1e-3 < summary.agreement.difference < 5e-2 and 0 < summary.agreement.kl < 0.015


def test_the_figures_of_an_agreement():
    ours = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]))
    theirs = np.log(np.array([[[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]]]))
    agreement = compare(ours, theirs, np.array([1, 2]))
    assert agreement.kl == pytest.approx(0.25 * np.log(2) / 2)
    assert agreement.greedy == 0.5 and agreement.top_10 == 1.0
    assert agreement.loss == pytest.approx(-np.log(0.25))
    assert agreement.difference == pytest.approx(np.log(2) / np.log(10))
    assert compare(ours, theirs, np.array([])).loss is None


def test_a_wrong_mp_num_shows_in_the_reference_too(tmp_path):
    model = peer(n_embd=64, n_head=8)
    weights = open_model(str(save(model, tmp_path / "hf")))
    tokens = np.random.default_rng(0).integers(0, 300, (1, 16))
    wrong = dataclasses.replace(original_of(weights), mp_num=8)
    assert np.abs(reference.logits(wrong, tokens) - logits(model, tokens)).max() > 0.5
