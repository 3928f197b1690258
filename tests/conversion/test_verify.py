"""The reference implementation is correct, and verification fails when it should."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from codegen_jax.conversion import reference
from codegen_jax.conversion.convert import convert
from codegen_jax.conversion.verify import compare, original_of, our_logits, verify
from codegen_jax.errors import UserError
from codegen_jax.weights import huggingface
from codegen_jax.weights.open import open_model
from tests.peers import logits, peer, save, state


@pytest.mark.parametrize("sizes", [{}, {"n_embd": 96, "n_head": 12, "rotary_dim": 8, "n_layer": 3}])
def test_the_reference_matches_transformers(tmp_path, sizes):
    model = peer(**sizes)
    model.config.save_pretrained(tmp_path)
    architecture = reference.transformers_architecture(tmp_path, state(model))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 33))
    ours = reference.logits(reference.TransformersOriginal(state(model), architecture, 4), tokens)
    theirs = logits(model, tokens)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_the_references_softmax_does_not_overflow():
    config = reference.Architecture(1, 32, 4, 8, 128, 4, 64, 1e-5, vocab_size=40)
    rng = np.random.default_rng(0)
    h, qkv = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 10, 32), (32, 96)))
    found = reference.attention(h, 100 * qkv, config, 4)
    assert np.isfinite(found).all() and np.abs(found).max() <= 100 * np.abs(h @ qkv).max()


def test_running_layer_by_layer_matches_the_whole_model(tmp_path):
    model = peer()
    tokens = np.random.default_rng(0).integers(0, 300, (2, 33))
    theirs = logits(model, tokens)
    ours = our_logits(open_model(str(save(model, tmp_path / "hf"))), tokens)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def swap_two_heads(tensors):
    w = tensors["transformer.h.1.attn.qkv_proj.weight"]
    w[0:8], w[24:32] = w[24:32].clone(), w[0:8].clone()  # q of a head in each of the first two groups


def nudge(tensors):
    tensors["transformer.h.0.mlp.fc_in.weight"][3, 4] += 1.0


def set_nan(tensors):
    tensors["lm_head.bias"][5] = float("nan")


@pytest.mark.parametrize("damage", [swap_two_heads, nudge, set_nan])
@pytest.mark.parametrize("proof", ["numpy", "torch"])
def test_weights_that_change_during_conversion_fail_verification(tmp_path, damage, proof):
    folder = save(peer(), tmp_path / "hf")
    convert(str(folder), str(tmp_path / "ours"))
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="gives different results"):
        verify(proof, open_model(str(folder)), tmp_path / "ours", "jax")


WRONG_READINGS = {
    "n_positions": {"n_positions": 32},
    "rotary_dim": {"rotary_dim": 2},
    "layer_norm_epsilon": {"layer_norm_epsilon": 1e-6},
    "n_head": {"n_head": 8, "head_dim": 4},
}


@pytest.mark.parametrize("field", WRONG_READINGS)
@pytest.mark.parametrize("to", ["jax", "hf", "gptj"])
def test_a_config_field_that_our_code_misreads_fails_verification(tmp_path, monkeypatch, field, to):
    folder = save(peer(), tmp_path / "hf")
    parse = huggingface.parse_config
    wrong = lambda *arguments: dataclasses.replace(parse(*arguments), **WRONG_READINGS[field])
    monkeypatch.setattr(huggingface, "parse_config", wrong)
    ours, found = WRONG_READINGS[field][field], getattr(peer().config, field)
    with pytest.raises(
        UserError,
        match=f"^proof: {field} is {ours} in our config, but {found} according to an independent reading of {folder}",
    ):
        convert(str(folder), str(tmp_path / "out"), to=to, proof="numpy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("proof", ["numpy", "torch"])
@pytest.mark.parametrize("field", WRONG_READINGS)
def test_a_config_field_that_our_code_writes_wrongly_fails_verification(tmp_path, field, proof):
    folder = save(peer(), tmp_path / "hf")
    convert(str(folder), str(tmp_path / "ours"))
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {field: WRONG_READINGS[field][field]}))
    with pytest.raises(UserError, match=f"^proof: {field} is "):
        verify(proof, open_model(str(tmp_path / "ours")), folder, "hf")


def test_sizes_read_by_transformers_are_compared_too(tmp_path, monkeypatch):
    folder = save(peer(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 32}))
    read = reference.transformers_architecture
    both = lambda *arguments: dataclasses.replace(read(*arguments), n_positions=64)
    monkeypatch.setattr(reference, "transformers_architecture", both)
    parse = huggingface.parse_config
    monkeypatch.setattr(
        huggingface, "parse_config", lambda *arguments: dataclasses.replace(parse(*arguments), n_positions=64)
    )
    with pytest.raises(UserError, match=r"^proof: n_positions is 64 in our config, but 32 according to an independent"):
        convert(str(folder), str(tmp_path / "out"), proof="torch")
    convert(str(folder), str(tmp_path / "out"), proof="numpy")  # both implementations are wrong in the same way


@pytest.mark.parametrize(
    "fields", [{"use_cache": "yes"}, {"resid_pdrop": None}, {"initializer_range": 1}, {"vocab_size": 400}]
)
def test_a_folder_that_transformers_cannot_load_is_reported_in_one_line(tmp_path, fields):
    folder = save(peer(), tmp_path / "hf")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | fields))
    with pytest.raises(UserError, match=rf"^proof: torch: transformers cannot load {folder} \(.*use numpy$"):
        convert(str(folder), str(tmp_path / "out"), proof="torch")
    convert(str(folder), str(tmp_path / "out"), proof="numpy")


def test_tensor_names_unknown_to_transformers_are_reported_as_such(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{n}": t for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^proof: torch: transformers does not find .*; and 16 more in .*; use numpy"):
        convert(str(folder), str(tmp_path / "out"), proof="torch")
    convert(str(folder), str(tmp_path / "out"), proof="numpy")


def test_rounding_is_tolerated_only_in_a_cast(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    summary = convert(str(folder), str(tmp_path / "cast"), dtype="bfloat16", proof="numpy")
    assert 1e-3 < summary.agreement.difference < 5e-2 and 0 < summary.agreement.kl < 0.015


def test_agreement_figures_are_correct():
    ours = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]))
    theirs = np.log(np.array([[[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]]]))
    agreement = compare(ours, theirs, np.array([1, 2]))
    assert agreement.kl == pytest.approx(0.25 * np.log(2) / 2)
    assert agreement.greedy == 0.5 and agreement.top_10 == 1.0
    assert agreement.loss == pytest.approx(-np.log(0.25))
    assert agreement.difference == pytest.approx(np.log(2) / np.log(10))
    assert compare(ours, theirs, np.array([])).loss is None


def test_the_reference_depends_on_mp_num(tmp_path):
    model = peer(n_embd=64, n_head=8)
    weights = open_model(str(save(model, tmp_path / "hf")))
    tokens = np.random.default_rng(0).integers(0, 300, (1, 16))
    wrong = dataclasses.replace(original_of(weights), mp_num=8)
    assert np.abs(reference.logits(wrong, tokens) - logits(model, tokens)).max() > 0.5
