"""Adapters made by PEFT, merged into our weights, and adapters that PEFT reads."""

import jax
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file

from codegen_jax.config import AdapterConfig, CodeGenConfig
from codegen_jax.errors import UserError
from codegen_jax.model.adapter import Adapted, abstract_adapter
from codegen_jax.model.codegen import abstract_params, init_params, module
from codegen_jax.weights.adapter import AdaptedWeights
from codegen_jax.weights.adapter_layout import from_peft, to_peft
from codegen_jax.weights.base import load_params, shapes
from codegen_jax.weights.checkpoint_writer import write_checkpoint
from codegen_jax.weights.huggingface_layout import HuggingFaceWeights
from codegen_jax.weights.open import open_model, split_factor
from codegen_jax.weights.peft import read_peft, write_peft
from tests.peers import logits, peer, state
from tests.runs import InMemory

SIZES = dict(n_layer=3, n_embd=64, n_head=8, rotary_dim=4, vocab_size=97, n_positions=64)
CONFIG = CodeGenConfig(**SIZES, dtype="float32")
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 33))

KINDS = {
    "all-linear": dict(target_modules="all-linear"),
    "attention": dict(target_modules=["qkv_proj", "out_proj"], lora_alpha=5),
    "lm_head": dict(target_modules=["fc_in", "lm_head"]),
    "regular expression": dict(target_modules=r".*h\.[02]\.mlp\.fc_(in|out)"),
    "rslora": dict(target_modules="all-linear", use_rslora=True, lora_alpha=3),
    "dora": dict(target_modules="all-linear", use_dora=True),
    "dora of the head": dict(target_modules=["qkv_proj", "out_proj", "lm_head"], use_dora=True, use_rslora=True),
    "patterns": dict(
        target_modules=["qkv_proj", "fc_in", "fc_out"],
        rank_pattern={"fc_in": 2, r"h\.1\.attn\.qkv_proj": 6},
        alpha_pattern={"fc_.*": 32},
    ),
    "layers": dict(target_modules=["qkv_proj", "fc_out"], layers_to_transform=[0, 2]),
    "one layer": dict(target_modules=["qkv_proj"], layers_to_transform=1, layers_pattern="h"),
    "excluded": dict(target_modules=["qkv_proj", "fc_out"], exclude_modules=["h.0.mlp.fc_out"]),
    "saved modules": dict(target_modules=["qkv_proj"], modules_to_save=["lm_head", "ln_f", "wte", "mlp.fc_in"]),
    "tokens": dict(target_modules=["qkv_proj"], trainable_token_indices=[3, 96]),
    "tokens of the head": dict(target_modules="all-linear", trainable_token_indices={"wte": [3], "lm_head": [1, 50]}),
    "initialized otherwise": dict(target_modules="all-linear", init_lora_weights="gaussian", lora_dropout=0.1),
}


def adapted(seed=0, dtype=torch.float32, **settings):
    """A CodeGen of PEFT with random updates."""
    model = peft.get_peft_model(peer(0, dtype, **SIZES), peft.LoraConfig(**(dict(r=4) | settings)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.5 if "magnitude" in name else 0.1))
    return model.eval()


def merged(folder, factor=1.0, weights=None):
    weights = weights or HuggingFaceWeights(state(peer(0, **SIZES)), CONFIG)
    return AdaptedWeights(weights, [(read_peft(folder, CONFIG), factor)])


def our_logits(weights):
    return np.asarray(module(CONFIG, load_params(weights, abstract_params(CONFIG)))(TOKENS))


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


def whole(shape):
    return tuple(slice(0, size) for size in shape)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_merged_weights_give_the_logits_of_peft(settings, tmp_path):
    theirs = adapted(**settings)
    theirs.save_pretrained(tmp_path / "adapter")
    without = our_logits(HuggingFaceWeights(state(peer(0, **SIZES)), CONFIG))
    if "lm_head" in (settings.get("trainable_token_indices") or ()):
        theirs = theirs.merge_and_unload()  # PEFT 0.21's unmerged forward pass loses the bias of lm_head
    expected = logits(theirs, TOKENS)
    assert np.abs(without - expected).max() > 1e-2 * np.abs(expected).max()  # the adapter does something
    assert_close(our_logits(merged(tmp_path / "adapter")), expected)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_an_adapter_of_peft_comes_back_bit_for_bit(settings, tmp_path):
    theirs = adapted(**settings)
    theirs.save_pretrained(tmp_path / "adapter")
    write_peft(read_peft(tmp_path / "adapter", CONFIG), tmp_path / "back", 64)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "back"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    reloaded = peft.PeftModel.from_pretrained(peer(0, **SIZES), tmp_path / "back").eval()
    np.testing.assert_array_equal(logits(reloaded, TOKENS), logits(theirs, TOKENS))


@pytest.mark.parametrize("settings", [KINDS["dora of the head"], KINDS["tokens of the head"], KINDS["layers"]])
def test_a_region_is_the_same_as_a_part_of_the_whole(settings, tmp_path):
    adapted(**settings).save_pretrained(tmp_path / "adapter")
    weights, random = merged(tmp_path / "adapter"), np.random.default_rng(0)
    for name, shape in shapes(CONFIG).items():
        full = weights.read(name, whole(shape))
        for _ in range(10):
            bounds = [sorted(random.choice(size + 1, 2, replace=False)) for size in shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            np.testing.assert_allclose(weights.read(name, index), full[index], atol=1e-6, err_msg=f"{name} {index}")


def test_several_adapters_with_weights_are_those_of_peft(tmp_path):
    for seed in (1, 2):
        adapted(seed, target_modules="all-linear", r=seed + 1).save_pretrained(tmp_path / str(seed))
    both = peft.PeftModel.from_pretrained(peer(0, **SIZES), tmp_path / "1", adapter_name="one")
    both.load_adapter(tmp_path / "2", adapter_name="two")
    both.add_weighted_adapter(["one", "two"], [0.3, 1.5], "both", combination_type="cat")
    both.set_adapter("both")
    adapters = [(read_peft(tmp_path / "1", CONFIG), 0.3), (read_peft(tmp_path / "2", CONFIG), 1.5)]
    base = HuggingFaceWeights(state(peer(0, **SIZES)), CONFIG)
    assert_close(our_logits(AdaptedWeights(base, adapters)), logits(both.eval(), TOKENS))


def test_a_weight_for_an_adapter_that_replaces_weights_is_refused(tmp_path):
    adapted(**KINDS["dora"]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"has a weight of 0.5, but replaces weights \(DoRA"):
        merged(tmp_path / "adapter", 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_the_merge_is_that_of_float32_and_cast_once(dtype, tmp_path):
    numpy_dtype = np.float16 if dtype == torch.float16 else ml_dtypes.bfloat16
    adapted(**KINDS["all-linear"]).save_pretrained(tmp_path / "adapter")
    tensors = state(peer(0, **SIZES))
    short = {name: value.astype(numpy_dtype) for name, value in tensors.items()}
    long = {name: value.astype(np.float32) for name, value in short.items()}
    found, exact = (merged(tmp_path / "adapter", weights=HuggingFaceWeights(t, CONFIG)) for t in (short, long))
    for name, shape in shapes(CONFIG).items():
        np.testing.assert_array_equal(found.read(name, whole(shape)), exact.read(name, whole(shape)))


def test_an_embedding_bias_is_folded_before_adapters_are_merged(tmp_path):
    params = jax.device_get(init_params(CodeGenConfig(**SIZES, dtype="float32", embedding_bias=True), 0))
    params["embedding_bias"] = np.full(64, 0.5, np.float32)
    biased = InMemory(CodeGenConfig(**SIZES, dtype="float32", embedding_bias=True), params)
    write_checkpoint(biased, tmp_path / "model", lambda nbytes: None)
    adapted(**KINDS["tokens"]).save_pretrained(tmp_path / "adapter")
    found = open_model(str(tmp_path / "model"), adapters=[str(tmp_path / "adapter")])
    embedding = found.read("embedding", (slice(0, 97), slice(0, 64)))
    np.testing.assert_array_equal(embedding[4:96], params["embedding"][4:96] + 0.5)
    rows = read_peft(tmp_path / "adapter", CONFIG).rows["transformer.wte.weight"].values
    np.testing.assert_array_equal(embedding[[3, 96]], rows)
    assert "embedding_bias" not in load_params(found, abstract_params(found.config))


def test_copies_of_the_models_own_head_do_not_count_as_changes(tmp_path):
    adapted(**KINDS["lm_head"]).save_pretrained(tmp_path / "adapter")
    base = HuggingFaceWeights(state(peer(0, **SIZES)), CONFIG)
    adapter = read_peft(tmp_path / "adapter", CONFIG)
    assert adapter.replaced.keys() == {"lm_head.weight", "lm_head.bias"}
    assert adapter.for_model(base).replaced == {}
    other = HuggingFaceWeights(state(peer(1, **SIZES)), CONFIG)
    assert adapter.for_model(other).replaced.keys() == {"lm_head.weight", "lm_head.bias"}
    merged(tmp_path / "adapter", 0.5)


def test_a_name_may_contain_an_equals_sign(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    assert split_factor(str(tmp_path / "lr=0.1")) == (str(tmp_path / "lr=0.1"), 1.0)
    assert split_factor(f"{tmp_path}/lr=0.1=2") == (f"{tmp_path}/lr=0.1", 2.0)
    assert split_factor("a/b=c") == ("a/b=c", 1.0)
    with pytest.raises(UserError, match="the weight must be a finite number"):
        split_factor("a=nan")


def test_not_a_number_in_an_adapter_is_refused(tmp_path):
    model = adapted(**KINDS["tokens"])
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "trainable_tokens" in n)[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"transformer.wte.weight of tokens contains nan"):
        read_peft(tmp_path / "adapter", CONFIG)


def random_params(adapter):
    random = np.random.default_rng(0)
    draw = lambda x: random.normal(0, 0.1, x.shape).astype(np.float32)
    return jax.tree.map(draw, abstract_adapter(CONFIG, adapter))


OURS = {
    "all": AdapterConfig(rank=4, alpha=6.0),
    "head": AdapterConfig(rank=4, targets=["all-linear", "lm_head"], rslora=True),
    "head only": AdapterConfig(rank=4, targets=["lm_head"]),
    "all layers in another order": AdapterConfig(rank=2, layers=[2, 0, 1]),
    "layers": AdapterConfig(rank=3, targets=["qkv_proj", "fc_out"], layers=[2, 0]),
    "layers and head": AdapterConfig(rank=3, targets=["qkv_proj", "lm_head"], layers=[1]),
    "tokens": AdapterConfig(rank=2, targets=["out_proj"], trainable_tokens=[5, 96]),
}


@pytest.mark.parametrize("mp_num", [4, 8])
@pytest.mark.parametrize("adapter", OURS.values(), ids=OURS)
def test_our_adapters_give_the_same_logits_in_peft(adapter, mp_num, tmp_path):
    params = random_params(adapter)
    tensors = state(peer(0, **SIZES))
    ours = module(CONFIG, load_params(HuggingFaceWeights(tensors, CONFIG, mp_num), abstract_params(CONFIG)))
    updates = Adapted(adapter, params)
    x_BTD, head_DV = updates.head(ours.hidden(TOKENS, updates=updates), ours.head[...])
    expected = np.asarray(x_BTD @ head_DV + ours.head_bias[...])

    export = to_peft(params, CONFIG, adapter, mp_num, source="run", base=None, tokenizer=None)
    write_peft(export, tmp_path / "adapter", 64)
    base = peer(0, **SIZES)
    for block in base.transformer.h:
        block.attn.mp_num = mp_num
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(logits(theirs, TOKENS), expected)

    found = read_peft(tmp_path / "adapter", CONFIG, mp_num)
    assert_close(our_logits(AdaptedWeights(HuggingFaceWeights(tensors, CONFIG, mp_num), [(found, 1.0)])), expected)
    jax.tree.map(np.testing.assert_array_equal, from_peft(found, CONFIG, adapter), params)
