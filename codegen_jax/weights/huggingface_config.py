"""Convert a Hugging Face config.json to our config: read fields as transformers does, or refuse them by name."""

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError, require
from codegen_jax.fields import check_type, documentation, in_words
from codegen_jax.weights.huggingface_layout import LAYER, MP_NUM, TOP
from codegen_jax.weights.other_programs import QUANTIZED, other_model, other_program
from codegen_jax.weights.tensors import DTYPES, Tensor

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {  # defaults of transformers' CodeGenConfig for fields missing from config.json
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
ALIASES = {  # attribute_map of transformers' CodeGenConfig
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names for the same function
    "tie_word_embeddings": (False,),
}


def refuse_other_model(path: Path, written: Mapping[str, Any]) -> None:
    """Raise `UserError` unless config.json describes a CodeGen with unquantized weights."""
    if "model_type" not in written:
        no_model_type = 'no model_type; if the model is a CodeGen, add "model_type": "codegen"'
        raise UserError(f"{path}: {other_program(path.parent) or no_model_type}")
    require(written["model_type"] == "codegen", f"{path}: {other_model(written['model_type'])}")
    require(not written.get("quantization_config"), f"{path}: {QUANTIZED}")
    require(
        not written.get("text_config"),
        f"{path}: the fields are in text_config, which transformers' CodeGen ignores; move them to the top level",
    )


def parse_config(path: Path, written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CodeGenConfig:
    """Convert config.json to our config, interpreting each field as transformers does.

    Vocabulary size and dtype are taken from the embedding, since config.json files in the wild get them wrong.

    Args:
        path: the path of config.json, for messages.
        written: its content.
        tensors: the model's tensors, by their names in transformers.

    Raises:
        UserError: if transformers rejects or ignores a value, or we do not support it; the message names the field.
    """
    names, values = dict[str, str](), dict[str, Any]()
    for name, default in DEFAULTS.items():
        names[name], values[name] = _read_field(path, written, name, default)
    for name, supported in SUPPORTED.items():
        require(
            values[name] in supported,
            f"{path}: {name} {values[name]} is not supported; use {' or '.join(map(str, supported))}",
        )
    epsilon = values["layer_norm_epsilon"]
    require(
        0 <= epsilon <= sys.float_info.max,  # integers in JSON are unbounded
        f"{path}: layer_norm_epsilon: must be non-negative and in the range of floats, got {str(epsilon)[:20]}",
    )
    _, head_dim = _read_field(path, written, "head_dim", 0, nullable=True)
    _read_field(path, written, "mp_num", MP_NUM)
    try:
        config = CodeGenConfig(
            **{name: values[name] for name in ("n_layer", "n_embd", "n_head", "rotary_dim", "n_positions")},
            layer_norm_epsilon=float(epsilon),
            vocab_size=values["vocab_size"],
            head_dim=head_dim or 0,
        )
    except UserError as error:  # "model.n_head: 5 does not divide model.n_embd = 32"
        text = re.sub(r"model\.(\w+)", lambda found: names.get(found[1], found[1]), str(error))
        raise UserError(f"{path}: {text}") from error
    _check_sizes(path, names, config, tensors)
    _, n_inner = _read_field(path, written, "n_inner", config.n_inner, nullable=True)
    require(
        n_inner in (None, config.n_inner),
        f"{path}: n_inner {n_inner} is not supported; it must be 4 x n_embd = {config.n_inner}",
    )
    heads, projection = config.n_head * config.head_dim, tensors.get(f"transformer.h.0.{LAYER['blocks.attention_out']}")
    require(
        heads == config.n_embd or (projection is not None and projection.shape[-1:] == (heads,)),
        f"{path}: head_dim is {config.head_dim}, but transformers ignores it, and heads in the weights have "
        f"n_embd / n_head = {config.n_embd / config.n_head:g} channels; remove it",
    )
    return _corrected_by_embedding(path, written, config, tensors.get(TOP["embedding"]))


def _read_field(
    path: Path, written: Mapping[str, Any], name: str, default: Any, *, nullable: bool = False
) -> tuple[str, Any]:
    """The name and value of a field in config.json; transformers accepts either of two names for some fields."""
    given = [key for key in dict.fromkeys((name, ALIASES.get(name, name))) if key in written]
    for key in given:
        if written[key] is None and not nullable:
            meaning = documentation(CodeGenConfig).get(name)
            expected = f"{in_words(type(default))}: {meaning}" if meaning else json.dumps(default)
            raise UserError(f"{path}: {key} is null; set it to {expected.removesuffix('.')}")
        if written[key] is not None:
            check_type(f"{path}: {key}", written[key], type(default))
    key, *others = given or [name]
    for other in others:
        require(
            written[key] == written[other],
            f"{path}: {key} is {written[key]} and {other} is {written[other]}; they are the same field, remove one",
        )
    return key, written.get(key, default)


def _check_sizes(path: Path, names: Mapping[str, str], config: CodeGenConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a depth or width that does not match the weights, before allocating anything of that size."""
    sizes = {"n_layer": len({name.split(".")[2] for name in tensors if name.startswith("transformer.h.")})}
    embedding = tensors.get(TOP["embedding"])
    if embedding is not None and len(embedding.shape) == 2:
        sizes["n_embd"] = embedding.shape[1]
    for name, size in sizes.items():
        value = getattr(config, name)
        require(
            value == size,
            f"{path}: {names[name]} is {value}, but {size} in the weights; use the config.json of these weights",
        )


def _corrected_by_embedding(
    path: Path, written: Mapping[str, Any], config: CodeGenConfig, embedding: Tensor | None
) -> CodeGenConfig:
    """The config with the vocabulary size and compute dtype that follow from the embedding."""
    if embedding is None or len(embedding.shape) != 2:
        return dataclasses.replace(config, dtype="float32")
    rows = embedding.shape[0]
    if rows != config.vocab_size:
        log.warning(f"{path}: vocab_size is {config.vocab_size}, but the embedding has {rows} rows; using {rows}")
    stated = str(written.get("dtype", written.get("torch_dtype")) or "auto").removeprefix("torch.")
    actual = embedding.dtype.name
    if stated not in ("auto", actual) and embedding.dtype in DTYPES.values():
        log.warning(f"{path}: dtype is {stated}, but the weights are {actual}; using {actual}")
    dtype = "float32" if embedding.dtype == np.float32 else "bfloat16"
    return dataclasses.replace(config, vocab_size=rows, dtype=dtype)
