"""jaxformer's npz checkpoints, written here as in its checkpoint.py and modules.py, compared with transformers."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig
from codegen_jax.config_file import load_config
from codegen_jax.conversion.convert import convert
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import abstract_params
from codegen_jax.weights import jaxformer
from codegen_jax.weights.base import load_params
from codegen_jax.weights.jaxformer import JaxformerWeights
from codegen_jax.weights.open import open_model
from tests.peers import peer, state

HEADS = {"model_heads": 4, "model_head_dim": 8, "model_pe_rotary_dims": 4}


def leaves_of(model, bias):
    """The model's 14 leaves: kernels transposed, layers stacked, and the embedding without its `bias`.

    The head stays in Fortran order, as NumPy transposes it; np.savez keeps that order.
    """
    tensors = state(model)

    def stacked(name, transpose=False):
        layers = [tensors[f"transformer.h.{i}.{name}"] for i in range(model.config.n_layer)]
        return np.stack([layer.T for layer in layers] if transpose else layers)

    return [
        bias,
        tensors["transformer.wte.weight"] - bias,
        tensors["transformer.ln_f.bias"],
        tensors["transformer.ln_f.weight"],
        tensors["lm_head.bias"],
        tensors["lm_head.weight"].T,
        stacked("attn.out_proj.weight", True),
        stacked("attn.qkv_proj.weight", True),
        stacked("mlp.fc_in.bias"),
        stacked("mlp.fc_in.weight", True),
        stacked("mlp.fc_out.bias"),
        stacked("mlp.fc_out.weight", True),
        stacked("ln_1.bias"),
        stacked("ln_1.weight"),
    ]


def write(folder, leaves, savez=np.savez, config=HEADS):
    (folder / "model").mkdir(parents=True)
    savez(folder / "model" / "0.npz", *leaves)
    (folder / "ckpt.json").write_text(json.dumps({"process_count": 1, "step": 7}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """A model in transformers and as a jaxformer checkpoint; values are coarse enough for w + b to be exact."""
    model = peer()
    bias = np.round(np.random.default_rng(0).standard_normal(32) * 8).astype(np.float32) / 8
    tensors = model.state_dict()
    wte = tensors["transformer.wte.weight"]
    wte.copy_((wte * 1024).round() / 1024)
    return model, write(tmp_path / "step_7", leaves_of(model, bias))


def assert_converts_to(folder, model, out):
    from safetensors.numpy import load_file

    convert(str(folder), str(out), to="hf", proof="numpy")
    written, expected = load_file(out / "model.safetensors"), state(model)
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_a_jaxformer_checkpoint_converts_to_transformers_exactly(checkpoint, tmp_path):
    model, folder = checkpoint
    assert_converts_to(folder, model, tmp_path / "hf")


def test_a_jaxformer_checkpoint_verifies_against_transformers_via_our_checkpoint(checkpoint, tmp_path):
    _, folder = checkpoint
    summary = convert(str(folder), str(tmp_path / "ours"), proof="numpy")
    assert summary.agreement is not None and summary.agreement.difference < 1e-5
    assert not open_model(str(tmp_path / "ours")).config.embedding_bias  # it was folded in
    convert(str(tmp_path / "ours"), str(tmp_path / "hf"), to="hf", proof="torch")
    convert(str(folder), str(tmp_path / "gptj"), to="gptj", proof="torch")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("n_head", {"n_head": 8, "head_dim": 4}),
        ("rotary_dim", {"rotary_dim": 2}),
        ("n_positions", {"n_positions": 64}),
    ],
)
def test_sizes_that_our_code_misreads_fail_verification(checkpoint, tmp_path, monkeypatch, field, fields):
    _, folder = checkpoint
    find = JaxformerWeights._find_config
    monkeypatch.setattr(
        JaxformerWeights, "_find_config", lambda *arguments: dataclasses.replace(find(*arguments), **fields)
    )
    with pytest.raises(UserError, match=f"^proof: {field} is {fields[field]} in our config"):
        convert(str(folder), str(tmp_path / "out"), proof="numpy")


@pytest.mark.parametrize(
    "config", [[], {"model_heads": 4}, HEADS | {"model_heads": None}, HEADS | {"model_heads": True}]
)
def test_a_config_without_heads_is_rejected(checkpoint, config):
    (checkpoint[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: (not a jaxformer config|model_heads: .* whole number)"):
        open_model(str(checkpoint[1]))


def test_compressed_arrays_are_read(checkpoint, tmp_path):
    model, folder = checkpoint
    leaves = list(np.load(folder / "model" / "0.npz").values())
    assert_converts_to(write(tmp_path / "compressed", leaves, np.savez_compressed), model, tmp_path / "hf")


def test_an_embedding_that_overflows_float16_with_its_bias_is_rejected(checkpoint, tmp_path):
    leaves = [leaf.astype(np.float16) for leaf in np.load(checkpoint[1] / "model" / "0.npz").values()]
    leaves[0][3] = leaves[1][7, 3] = 6e4
    folder = write(tmp_path / "narrow", leaves)
    weights = open_model(str(folder))
    for read in (
        lambda: convert(str(folder), str(tmp_path / "out")),
        lambda: load_params(weights, abstract_params(dataclasses.replace(weights.config, embedding_bias=False))),
    ):
        message = f"^{folder}: the float16 embedding, after adding its bias, .* of 120000, above .* 65504; save"
        with pytest.raises(UserError, match=message):
            read()
    assert not (tmp_path / "out").exists()


def test_bfloat16_arrays_stored_as_raw_bytes_are_read(checkpoint, tmp_path):
    _, folder = checkpoint
    leaves = [leaf.astype(ml_dtypes.bfloat16) for leaf in np.load(folder / "model" / "0.npz").values()]
    halved = write(tmp_path / "bfloat16", leaves)
    assert np.load(halved / "model" / "0.npz")["arr_1"].dtype == "V2"
    assert open_model(str(halved)).dtype("blocks.query").name == "bfloat16"
    convert(str(halved), str(tmp_path / "wide"), to="hf", dtype="float32", proof="numpy")
    convert(str(halved), str(tmp_path / "ours"), proof="numpy")


def test_reading_a_region_matches_slicing_the_whole_parameter(checkpoint):
    weights, random = open_model(str(checkpoint[1])), np.random.default_rng(1)
    shapes = {"blocks.query": (2, 32, 4, 8), "blocks.value": (2, 32, 4, 8), "blocks.attention_out": (2, 4, 8, 32)}
    for name, shape in (shapes | {"head": (32, 300), "embedding": (300, 32), "blocks.fc_in": (2, 32, 128)}).items():
        full = weights.read(name, tuple(slice(0, size) for size in shape))
        assert full.shape == shape
        for _ in range(20):
            bounds = [sorted(random.choice(size + 1, 2, replace=False)) for size in shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            np.testing.assert_array_equal(weights.read(name, index), full[index])


def test_heads_come_from_the_config_or_the_published_sizes_only(checkpoint, tmp_path):
    _, folder = checkpoint
    (folder / "config.json").rename(tmp_path / "config.json")  # next to the step folders works too
    assert open_model(str(folder)).config.n_head == 4
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="model_heads"):
        open_model(str(folder))
    config = CodeGenConfig(2, 32, 2, 8, vocab_size=300)
    assert open_model(str(folder), mp_num=2, config=config).config.n_head == 2
    model = peer(n_layer=1, n_embd=1024, n_head=16, rotary_dim=32, vocab_size=64)
    published = write(tmp_path / "350m", leaves_of(model, np.zeros(1024, np.float32)), config=None)
    assert open_model(str(published)).config.rotary_dim == 32
    assert open_model(str(published), config=config).config.rotary_dim == 32  # the heads of another network are ignored


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda leaves: leaves[:13], "contains 13 arrays, expected 14"),
        (lambda leaves: [*leaves[:7], leaves[7][:, :, :90], *leaves[8:]], r"qkv is float32 \[2, 32, 90\]"),
        (lambda leaves: [leaves[1], leaves[0], *leaves[2:]], "not the arrays of a jaxformer checkpoint"),
        (lambda leaves: [*leaves[:13], np.zeros((2, 32), np.int32)], "blocks.ln.scale is int32"),
        (lambda leaves: [*leaves[:13], np.array([{}, 1])], "pickled objects"),
    ],
)
def test_other_arrays_are_rejected(checkpoint, tmp_path, change, words):
    leaves = list(np.load(checkpoint[1] / "model" / "0.npz").values())
    folder = write(tmp_path / "other", change(leaves))
    with pytest.raises(UserError, match=words):
        JaxformerWeights(folder)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_truncated_file_is_reported_by_name(checkpoint, kept):
    file = checkpoint[1] / "model" / "0.npz"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"0.npz: truncated"):
        open_model(str(checkpoint[1]))


@pytest.mark.parametrize("size", ["350m", "2b", "6b", "16b"])
def test_published_heads_and_rotary_channels_match_the_configs(size):
    model = load_config(Path(__file__).parents[2] / f"configs/{size}_nl.yaml").model
    assert jaxformer.HEADS[model.n_embd] == (model.n_head, model.rotary_dim)
