"""NaN and infinity in weights: detected at any position, rejected by every reader, reported by the name in the file."""

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import codegen_jax
from codegen_jax.config import MeshConfig
from codegen_jax.conversion.convert import convert
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import abstract_params
from codegen_jax.training.loop import train
from codegen_jax.weights.base import load_params
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.finite import is_finite
from codegen_jax.weights.open import open_model
from tests.peers import FORMS, peer, save, tiny_bpe
from tests.runs import tiny_run
from tests.weights.test_jaxformer import leaves_of, write

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_pattern_is_classified_as_by_numpy(dtype):
    width = np.dtype(dtype).itemsize
    upper = np.arange(2**16, dtype=np.uint16)
    bits = upper if width == 2 else np.concatenate([upper.astype(np.uint32) << 16 | low for low in (0, 1, 0xFFFF)])
    values = bits.view(dtype)
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(values)
    assert [is_finite(value[None]) for value in values] == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_shapes_do_not_matter(dtype):
    random = np.random.default_rng(0)
    base = random.standard_normal((6, 8, 10)).astype(dtype)
    views = lambda x: [x, x.T, x[::2, 1:7, ::3], x.transpose(1, 2, 0), np.asfortranarray(x), x[0, 0, :1], x[:0]]
    assert all(is_finite(view) for view in views(base))
    base[4, 3, 6] = np.nan
    assert [is_finite(view) for view in views(base)] == [False] * 5 + [True] * 2
    base[4, 3, 6] = -np.inf
    assert [is_finite(view) for view in views(base)] == [False] * 5 + [True] * 2


def readers(tmp_path):
    """Every way in which users read weights."""
    return {
        "load": lambda model, **also: codegen_jax.load(model, **also),
        "load on eight devices": lambda model, **also: codegen_jax.load(
            model, mesh=MeshConfig(2, 1, 4), quantize="int8", **also
        ),
        "convert to ours": lambda model, **also: convert(model, str(tmp_path / "ours"), **also),
        "convert and cast": lambda model, **also: convert(model, str(tmp_path / "cast"), dtype="float16", **also),
        "convert to hf": lambda model, **also: convert(model, str(tmp_path / "hf"), to="hf", **also),
        "convert to gptj": lambda model, **also: convert(model, str(tmp_path / "gptj"), to="gptj", **also),
        "train": lambda model: load_params(open_model(model), abstract_params(open_model(model).config)),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("transformer.wte.weight", torch.nan, "nan"),
        ("transformer.ln_f.bias", torch.inf, "inf"),
        ("transformer.h.1.ln_1.weight", -torch.inf, "inf"),
        ("transformer.h.1.attn.qkv_proj.weight", torch.nan, "nan"),
        ("transformer.h.1.attn.out_proj.weight", torch.nan, "nan"),
        ("transformer.h.0.mlp.fc_in.weight", torch.nan, "nan"),
        ("lm_head.weight", -torch.inf, "inf"),
    ],
)
def test_a_non_finite_hugging_face_tensor_is_rejected_by_name(tmp_path, form, name, value, kind):
    model = peer(dtype=torch.bfloat16 if "bin" in form else torch.float16)
    model.state_dict()[name].view(-1)[17] = value
    folder = save(model, tmp_path / "source", form, tokenizer=tiny_bpe())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    for read in readers(tmp_path).values():
        with pytest.raises(UserError, match=f"^{folder}: {name} contains {kind}: .* earlier checkpoint") as error:
            read(str(folder))
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_tensor_is_reported_by_its_name_in_the_file(tmp_path):
    model = peer()
    model.transformer.h[1].mlp.fc_in.bias.data[3] = torch.nan
    folder = save(model, tmp_path / "source")
    tensors = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"^{folder}: module.transformer.h.1.mlp.fc_in.bias contains nan: "):
        convert(str(folder), str(tmp_path / "ours"))


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("leaf", "index", "name"),
    [
        (0, (3,), r"arr_0 \(embedding_bias\)"),
        (5, (3, 7), r"arr_5 \(head\)"),
        (6, (1, 3, 7), r"arr_6 \(blocks.attention_out\) of layer 1"),
        (7, (0, 3, 7), r"arr_7 \(qkv\) of layer 0"),
        (8, (1, 3), r"arr_8 \(blocks.fc_in_bias\) of layer 1"),
    ],
)
def test_a_non_finite_jaxformer_array_is_rejected_by_number_and_layer(tmp_path, savez, leaf, index, name):
    leaves = [leaf.astype(ml_dtypes.bfloat16) for leaf in leaves_of(peer(), np.ones(32, np.float32))]
    leaves[leaf][index] = np.nan
    folder = write(tmp_path / "step_7", leaves, savez)
    for reader in ("convert to ours", "convert to hf", "train"):
        with pytest.raises(UserError, match=f"^{folder}: {name} contains nan: "):
            readers(tmp_path)[reader](str(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_7"]


@pytest.fixture
def ours(tmp_path):
    """One of our checkpoints, with NaN and infinity in both layers and matching fingerprints."""
    model = peer()
    for layer in model.transformer.h:
        layer.mlp.fc_out.weight.data[2, 3:5] = torch.tensor([torch.nan, torch.inf])
    weights = open_model(str(save(model, tmp_path / "source", tokenizer=tiny_bpe())), allow_nonfinite=True)
    write_checkpoint(weights, tmp_path / "checkpoint", lambda _: None)
    return str(tmp_path / "checkpoint")


def test_our_own_non_finite_checkpoint_is_rejected_by_parameter_and_layer(ours, tmp_path):
    for read in readers(tmp_path).values():
        with pytest.raises(UserError, match=f"^{ours}: blocks.fc_out of layer 0 contains nan and inf: "):
            read(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "source"]


def test_allow_nonfinite_reads_such_weights_with_one_warning(ours, tmp_path, caplog):
    for name, read in readers(tmp_path).items():
        if name != "train":
            caplog.clear()
            read(ours, allow_nonfinite=True)
            (warning,) = (r.getMessage() for r in caplog.records if r.name.startswith("codegen_jax"))
            assert warning.startswith(f"{ours}: blocks.fc_out of layer 0 contains nan and inf; the weights are used")
    written = open_model(str(tmp_path / "ours"), allow_nonfinite=True).read("blocks.fc_out", (slice(1, 2),) * 3)
    original = open_model(ours, allow_nonfinite=True).read("blocks.fc_out", (slice(1, 2),) * 3)
    np.testing.assert_array_equal(written, original)


def test_non_finite_weights_cannot_be_verified(ours, tmp_path):
    with pytest.raises(UserError, match=r"^allow_nonfinite: non-finite logits cannot be verified"):
        convert(ours, str(tmp_path / "out"), to="hf", proof="numpy", allow_nonfinite=True)
    assert not (tmp_path / "out").exists()


def test_a_draft_model_is_checked_too(ours, tmp_path):
    convert(str(save(peer(), tmp_path / "whole", tokenizer=tiny_bpe())), str(tmp_path / "good"))
    with pytest.raises(UserError, match=f"^{ours}: blocks.fc_out of layer 0 contains"):
        codegen_jax.load(tmp_path / "good", draft=ours)
    assert codegen_jax.load(tmp_path / "good", draft=ours, allow_nonfinite=True).draft_model is not None


def test_a_run_with_non_finite_initial_weights_does_not_create_its_output_folder(tmp_path, token_folder):
    model = peer(vocab_size=512, n_positions=2048)
    model.lm_head.bias.data[5] = torch.nan
    folder = save(model, tmp_path / "hf")
    with pytest.raises(UserError, match=f"^{folder}: lm_head.bias contains nan: "):
        train(tiny_run(tmp_path / "run", token_folder, init_from=str(folder)))
    assert not (tmp_path / "run").exists()
