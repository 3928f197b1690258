"""Hugging Face folders: config.json, weights and tokenizer files, read and written.

A config.json in the wild is wrong in known ways; see `parse_config`.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import has_tokenizer, load_tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.fields import check_type, documentation, in_words
from codegen_jax.mistaken_paths import refuse_stand_in
from codegen_jax.weights.base import Weights, fold_embedding_bias
from codegen_jax.weights.generation_config import (
    CONFIG,
    GENERATION_CONFIG,
    complete,
    fitted,
    read_generation_config,
)
from codegen_jax.weights.huggingface_layout import LAYER, MP_NUM, TOP, HuggingFaceWeights, tensor_streams
from codegen_jax.weights.other_programs import QUANTIZED, other_model, other_program
from codegen_jax.weights.tensor_names import plain_tensors
from codegen_jax.weights.tensors import Tensor, open_tensors, write_tensors
from codegen_jax.weights.tokenizer_files import tokenizer_files

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {  # of transformers' CodeGenConfig, for fields that a config.json leaves out
    "n_layer": 28,
    "n_embd": 4096,
    "n_head": 16,
    "rotary_dim": 64,
    "vocab_size": 50400,
    "n_positions": 2048,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}
ALIASES = {  # transformers' attribute_map of CodeGenConfig
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "tie_word_embeddings": (False,),
}


def open_huggingface(folder: Path, mp_num: int | None = None) -> HuggingFaceWeights:
    """A folder as `save_pretrained` writes it: safetensors or .bin, whole or in shards.

    What config.json is known to get wrong is taken from the weights and the tokenizer, with a warning.

    Raises:
        UserError: if it is no CodeGen, or its files are damaged.
    """
    refuse_stand_in(folder / "config.json")
    try:
        written = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not JSON ({error}); fetch it again") from error
    require(isinstance(written, dict), f"{folder / 'config.json'}: a {type(written).__name__}, not an object")
    refuse_other_model(folder / "config.json", written)
    tensors = plain_tensors(str(folder), open_tensors(folder))
    config = parse_config(folder / "config.json", written, tensors)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    groups = written.get("mp_num", MP_NUM) if mp_num is None else mp_num
    weights = HuggingFaceWeights(tensors, config, groups, tokenizer, str(folder))
    weights.generation_config = read_generation_config(folder, written)
    if tokenizer is not None:
        weights.generation_config = fitted(weights.generation_config, tokenizer, str(folder))
    return weights


def refuse_other_model(path: Path, written: Mapping[str, Any]) -> None:
    """Raise `UserError` for a config.json that is not of a CodeGen whose weights are floats."""
    if "model_type" not in written:
        no_codegen = 'no model_type; of a CodeGen, write "model_type": "codegen" into it'
        raise UserError(f"{path}: {other_program(path.parent) or no_codegen}")
    require(written["model_type"] == "codegen", f"{path}: {other_model(written['model_type'])}")
    require(not written.get("quantization_config"), f"{path}: {QUANTIZED}")


def parse_config(path: Path, written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CodeGenConfig:
    """Our config from a config.json, each field as transformers reads it.

    Vocabulary and dtype are the embedding's, since files in the wild err there.

    Args:
        path: of the file, for messages.
        written: its content.
        tensors: of the model, by transformers' names.

    Raises:
        UserError: naming the field, for a value that transformers does not take, does not heed, or that is not ours.
    """
    names, values = dict[str, str](), dict[str, Any]()
    for name, default in DEFAULTS.items():
        names[name], values[name] = _read_field(path, written, name, default)
    for name, supported in SUPPORTED.items():
        require(values[name] in supported, f"{path}: {name} {values[name]} is not supported; {supported[0]} is")
    epsilon = float(values["layer_norm_epsilon"])
    require(0 <= epsilon < float("inf"), f"{path}: layer_norm_epsilon: {epsilon} must be a number from 0 on")
    _, head_dim = _read_field(path, written, "head_dim", 0, nullable=True)
    _read_field(path, written, "mp_num", MP_NUM)
    try:
        config = CodeGenConfig(
            **{name: values[name] for name in ("n_layer", "n_embd", "n_head", "rotary_dim", "n_positions")},
            layer_norm_epsilon=epsilon,
            vocab_size=values["vocab_size"],
            head_dim=head_dim or 0,
        )
    except UserError as error:  # "model.n_head: 5 does not divide model.n_embd = 32"
        text = re.sub(r"model\.(\w+)", lambda found: names.get(found[1], found[1]), str(error))
        raise UserError(f"{path}: {text}") from error
    _, n_inner = _read_field(path, written, "n_inner", config.n_inner, nullable=True)
    require(
        n_inner in (None, config.n_inner),
        f"{path}: n_inner {n_inner} is not supported; 4 x n_embd = {config.n_inner} is",
    )
    heads, projection = config.n_head * config.head_dim, tensors.get(f"transformer.h.0.{LAYER['blocks.attention_out']}")
    require(
        heads == config.n_embd or (projection is not None and projection.shape[-1:] == (heads,)),
        f"{path}: head_dim is {config.head_dim}, which transformers does not heed: its heads, and the weights', "
        f"have n_embd / n_head = {config.n_embd / config.n_head:g} channels; leave it out",
    )
    return _with_what_the_embedding_says(path, written, config, tensors.get(TOP["embedding"]))


def _read_field(
    path: Path, written: Mapping[str, Any], name: str, default: Any, *, nullable: bool = False
) -> tuple[str, Any]:
    """The name that a field has in a config.json, and its value; transformers reads some by either of two names."""
    given = [key for key in dict.fromkeys((name, ALIASES.get(name, name))) if key in written]
    for key in given:
        if written[key] is None and not nullable:
            meaning = documentation(CodeGenConfig).get(name)
            what = f"{in_words(type(default))}: {meaning}" if meaning else json.dumps(default)
            raise UserError(f"{path}: {key} is null; write {what.removesuffix('.')}")
        if written[key] is not None:
            check_type(f"{path}: {key}", written[key], type(default))
    key, *others = given or [name]
    for other in others:
        require(
            written[key] == written[other],
            f"{path}: {key} is {written[key]} and {other} is {written[other]}, two names of one field; leave one out",
        )
    return key, written.get(key, default)


def _with_what_the_embedding_says(
    path: Path, written: Mapping[str, Any], config: CodeGenConfig, embedding: Tensor | None
) -> CodeGenConfig:
    if embedding is None or len(embedding.shape) != 2:
        return dataclasses.replace(config, dtype="float32")
    rows = embedding.shape[0]
    if rows != config.vocab_size:
        log.warning(f"{path}: vocab_size is {config.vocab_size}, but the embedding has {rows} rows, which are kept")
    said = written.get("dtype", written.get("torch_dtype"))
    if said not in (None, "auto", embedding.dtype.name):
        log.warning(f"{path}: says {said}, but the weights are {embedding.dtype.name}, which is kept")
    dtype = "float32" if embedding.dtype == np.float32 else "bfloat16"
    return dataclasses.replace(config, vocab_size=rows, dtype=dtype)


def write_huggingface(
    weights: Weights, folder: Path, progress: Callable[[int], object], *, gptj: bool = False, mp_num: int = MP_NUM
) -> None:
    """Write a folder that transformers loads: config.json, generation_config.json, safetensors, tokenizer files.

    Args:
        weights: of the model; an embedding bias is folded in.
        folder: to make.
        progress: is told the bytes of each piece.
        gptj: write GPT-J's layout, for engines that do not know CodeGen: separate q, k, v, each in the heads' order.
        mp_num: groups in qkv_proj; transformers' CodeGen reads 4.
    """
    weights = fold_embedding_bias(weights)
    config = weights.config
    require(
        gptj or config.n_head % mp_num == 0,
        f"mp_num: {mp_num} does not divide the {config.n_head} heads; no such folder can be written for CodeGen",
    )
    require(
        config.head_dim * config.n_head == config.n_embd,
        f"model.head_dim: {config.head_dim} x {config.n_head} heads is not n_embd, which transformers cannot load",
    )
    files = {} if weights.tokenizer is None else tokenizer_files(weights.tokenizer, config.n_positions)
    folder.mkdir()
    write_tensors(folder, dict(tensor_streams(weights, None if gptj else mp_num)), progress)
    said = complete(weights.generation_config, weights.tokenizer)
    model = {
        "architectures": ["GPTJForCausalLM" if gptj else "CodeGenForCausalLM"],
        "model_type": "gptj" if gptj else "codegen",
        "torch_dtype": weights.dtype("embedding").name,
        "n_ctx": config.n_positions,
        **said[CONFIG],
        **DEFAULTS,
        **{name: getattr(config, name) for name in DEFAULTS.keys() & vars(config).keys()},
    }
    if mp_num != MP_NUM and not gptj:
        log.warning(
            f"qkv_proj is written in {mp_num} groups; transformers' CodeGen reads {MP_NUM} and would err silently"
        )
        model["mp_num"] = mp_num
    files["config.json"] = _json(model)
    files["generation_config.json"] = _json(said[GENERATION_CONFIG])
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
