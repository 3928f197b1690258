"""PEFT folders that cannot be used: one line that names the file, the field and the remedy."""

import json
import re

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file, save_file
from transformers import GPTJConfig, GPTJForCausalLM

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_adapter
from codegen_jax.weights.peft import HONOURED, NEUTRAL, WITHOUT_EFFECT, read_peft
from tests.peers import peer

SIZES = dict(n_layer=2, n_embd=32, n_head=4, rotary_dim=4, vocab_size=97, n_positions=64)
CONFIG = CodeGenConfig(**SIZES)


@pytest.fixture
def folder(tmp_path):
    model = peft.get_peft_model(peer(0, **SIZES), peft.LoraConfig(r=4, target_modules=["qkv_proj", "fc_in"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type: must be LORA, got LOHA; merge it with PEFT"),
        ({"bias": "all"}, "bias: all is not supported; merge the adapter"),
        ({"lora_bias": True}, "lora_bias: True is not supported"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication: \[\[0, 2\]\] is not supported"),
        ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens: \[3\] is not supported"),
        ({"target_parameters": ["weight"]}, "target_parameters: .* is not supported"),
        ({"use_qalora": True}, "use_qalora: True is not supported"),
        ({"invented_in_2027": 1}, "invented_in_2027: 1 is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa changes the model's own weights"),
        ({"r": 8}, "qkv_proj has rank 4, but adapter_config.json says 8"),
        ({"rank_pattern": {"fc_in": 2}}, "fc_in has rank 4, but adapter_config.json says 2"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern: '\(' is not a regular expression"),
        ({"use_dora": True}, "qkv_proj has no lora_magnitude_vector"),
        (
            {"target_modules": ["qkv_proj", "fc_in", "fc_out"]},
            "target_modules: the folder has no tensors of a target, transformer.h.0.mlp.fc_out",
        ),
        ({"target_modules": ["qkv_proj"]}, "a module that is not a target, transformer.h.0.mlp.fc_in"),
        ({"layers_to_transform": [0]}, "a module that is not a target, transformer.h.1.attn.qkv_proj"),
        ({"exclude_modules": ["fc_in"]}, "a module that is not a target, transformer.h.0.mlp.fc_in"),
        ({"modules_to_save": ["ln_f"]}, "modules_to_save: the folder has no tensors of ln_f"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: the folder has no rows of wte"),
        ({"target_modules": "("}, r"target_modules: '\(' is not a regular expression"),
        ({"target_modules": 3}, "target_modules: must be a list of names or a regular expression, got 3"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: must be a list of names, got 'lm_head'"),
        ({"modules_to_save": ["("]}, r"modules_to_save: '\(' is not a regular expression"),
        ({"layers_to_transform": "0"}, "layers_to_transform: must be a whole number or a list of them, got '0'"),
        ({"layers_pattern": [3]}, r"layers_pattern: must be a name or a list of names, got \[3\]"),
        ({"lora_alpha": "8"}, "lora_alpha: must be a number, got '8'"),
        ({"r": 0}, "r: must be a positive whole number, got 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_setting_that_would_be_ignored_or_is_wrong_is_refused_by_name(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        read_peft(folder, CONFIG)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_each_field_of_lora_config_is_honoured_without_effect_or_refused():
    fields = set(peft.LoraConfig.__dataclass_fields__)
    assert fields >= HONOURED and set() == HONOURED & WITHOUT_EFFECT
    neutral = peft.LoraConfig().to_dict()
    for name in fields - HONOURED - WITHOUT_EFFECT - {"init_lora_weights"}:
        assert neutral[name] == NEUTRAL[name] if name in NEUTRAL else not neutral[name], name


def test_a_model_of_other_sizes_is_refused(folder):
    wider = CodeGenConfig(**SIZES | {"n_embd": 64})
    with pytest.raises(UserError, match=r"lora_A.weight has shape \[4, 32\], expected \[4, 64\]; .* of other sizes"):
        read_peft(folder, wider)
    fewer = CodeGenConfig(**SIZES | {"n_layer": 1})
    with pytest.raises(UserError, match=r"adapts transformer.h.1.* which this CodeGen does not have"):
        read_peft(folder, fewer)


def test_an_adapter_of_another_family_is_refused_with_the_names_that_exist(tmp_path):
    model = GPTJForCausalLM(GPTJConfig(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"adapts transformer.h.0.attn.q_proj, .* can have qkv_proj, out_proj, fc_in"):
        read_peft(tmp_path, CONFIG)


def test_damaged_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"not an adapter; it has no adapter_config.json"):
        open_adapter(str(tmp_path), CONFIG)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/missing")):
        open_adapter(f"{tmp_path}/missing", CONFIG)
    name = "base_model.model.transformer.h.0.mlp.fc_in.lora_B.weight"
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=r"transformer.h.0.mlp.fc_in has no lora_B.weight"):
        read_peft(folder, CONFIG)
    edit_tensors(folder, lambda tensors: tensors.update({name: np.zeros((128, 4)), "other.lora_A.weight": np.zeros(1)}))
    with pytest.raises(UserError, match=r"other.lora_A.weight: not a tensor of a LoRA adapter|dtype float64"):
        read_peft(folder, CONFIG)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: not valid JSON"):
        read_peft(folder, CONFIG)
    (folder / "adapter_model.safetensors").unlink()
    edit_json = {"peft_type": "LORA", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(edit_json))
    with pytest.raises(UserError, match=r"adapter_model.safetensors: missing; download it"):
        read_peft(folder, CONFIG)
