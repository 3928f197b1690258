"""Tensor names with prefixes from training programs, and files that are not a complete model."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

from codegen_jax.errors import UserError
from codegen_jax.weights.huggingface import open_huggingface
from tests.peers import peer, state


def saved(folder, tensors):
    """Save a folder with the config of `peer()` and these tensors."""
    peer().config.save_pretrained(folder)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


class Wrapped(torch.nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def checkpointed(model):
    """Wrap each block, as FSDP's activation checkpointing does."""
    for i, block in enumerate(model.transformer.h):
        model.transformer.h[i] = Wrapped(**{_CHECKPOINT_WRAPPED_MODULE: block})
    return model


WRAPPERS = {
    "DataParallel": (torch.nn.DataParallel, "module."),
    "torch.compile": (torch.compile, "_orig_mod."),
    "both": (lambda model: torch.nn.DataParallel(torch.compile(model)), "_orig_mod., module."),
    "FSDP": (lambda model: Wrapped(**{FSDP_WRAPPED_MODULE: model}), "_fsdp_wrapped_module."),
    "checkpointing": (checkpointed, "_checkpoint_wrapped_module."),
    "Fabric": (lambda model: Wrapped(_forward_module=model), "_forward_module."),
    "Lightning": (lambda model: Wrapped(model=model), "model."),
    "PEFT": (lambda model: Wrapped(base_model=Wrapped(model=model)), "base_model., model."),
    "all": (
        lambda model: Wrapped(model=torch.compile(Wrapped(_forward_module=torch.nn.DataParallel(checkpointed(model))))),
        "_checkpoint_wrapped_module., _forward_module., _orig_mod., model., module.",
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_prefixes_are_removed_and_logged_in_one_line(tmp_path, caplog, wrapper):
    model, (wrap, prefixes) = peer(), WRAPPERS[wrapper]
    plain = state(model)
    folder = saved(tmp_path / "hf", wrap(model).state_dict())
    caplog.set_level(logging.INFO)
    weights = open_huggingface(folder)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("codegen_jax")]
    assert lines == [f"{folder}: removed the prefix {prefixes} from tensor names"]
    assert weights.tensors.keys() == plain.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(weights.tensors[name][:], array)


def test_plain_names_are_read_without_a_message(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    open_huggingface(saved(tmp_path / "hf", peer().state_dict()))
    assert not [record for record in caplog.records if record.name.startswith("codegen_jax")]


def without_head(tensors):
    return {n.removeprefix("transformer."): t for n, t in tensors.items() if n.startswith("transformer.")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"module.lm_head.bias": t["lm_head.bias"]}, "lm_head.bias and module.lm_head.bias; keep one"),
        (lambda t: t | {f"_orig_mod.{n}": v for n, v in t.items()}, "; and 16 more; keep one"),
        (lambda t: t | {"transformer.h.0.attn.out_proj.lora_A.default.weight": t["lm_head.bias"]}, "merge_and_unload"),
        (
            lambda t: {n.replace("out_proj.", "out_proj.base_layer."): v for n, v in t.items()},
            "transformer.h.0.attn.out_proj.base_layer.weight: a PEFT adapter's tensor",
        ),
        (
            lambda t: {n.replace("lm_head.", "lm_head.modules_to_save.default."): v for n, v in t.items()},
            "a PEFT adapter's tensor",
        ),
        (without_head, "a CodeGenModel, which has no head; save the CodeGenForCausalLM"),
        (lambda t: {f"module.{n}": v for n, v in without_head(t).items()}, "a CodeGenModel, which has no head"),
        (lambda t: {f"gpt.{n}": v for n, v in t.items()}, "every name begins with gpt., which is not part of"),
        (lambda t: {f"a.b.{n}": v for n, v in without_head(t).items()}, "every name begins with a."),
        (lambda t: {n: v[:0].reshape(-1)[:0] for n, v in t.items()}, "DeepSpeed ZeRO-3 .*; and 16 more; convert"),
        (
            lambda t: t | {"lm_head.weight": torch.zeros(0)},
            "for ungathered weights: lm_head.weight; convert",
        ),
        (lambda t: {"_fsdp_wrapped_module._flat_param": t["lm_head.bias"]}, "FSDP's flattened shards"),
        (
            lambda t: {n.replace("out_proj.weight", "out_proj.qweight"): v.int() for n, v in t.items()},
            "out_proj.qweight: quantized weights, which are not supported; use the original, unquantized model",
        ),
        (lambda t: t | {"transformer.h.0.mlp.fc_in.weight.absmax": t["lm_head.bias"]}, "quantized weights"),
        (lambda t: t | {"transformer.h.0.mlp.fc_in.SCB": t["lm_head.bias"]}, "quantized weights"),
        (
            lambda t: t | {"transformer.h.0.mlp.fc_in.weight.quant_state.bitsandbytes__nf4": t["lm_head.bias"]},
            "quantized weights",
        ),
        (
            lambda t: {n: v.to(torch.int8) for n, v in t.items()},
            "has dtype int8, .*; and 16 more: quantized",
        ),
        (
            lambda t: t | {"transformer.wte.weight": torch.zeros(0, 32)},
            "empty tensors.*: transformer.wte.weight; convert",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"},
            "no lm_head.weight; .* tie_word_embeddings false$",
        ),
        (
            lambda t: {n: v.double() for n, v in t.items()},
            r"has dtype float64, .* 16 more; .*\(model.float\(\)",
        ),
        (
            lambda t: t | {"lm_head.bias": t["lm_head.bias"].cfloat()},
            "has dtype complex64, expected .* or float32$",
        ),
    ],
)
def test_an_incomplete_or_unsupported_model_is_rejected_in_one_short_line(tmp_path, change, words, caplog):
    folder = saved(tmp_path / "hf", change(peer().state_dict()))
    with pytest.raises(UserError, match=words) as error:
        open_huggingface(folder)
    assert not caplog.records  # nothing is logged about a rejected file
    assert len(str(error.value)) < 700 and str(error.value).startswith(f"{folder}: ")
