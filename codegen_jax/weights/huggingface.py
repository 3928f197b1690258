"""Hugging Face folders: config.json, weights and tokenizer files, read and written.

A config.json in the wild is wrong in known ways; see `parse_config`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import has_tokenizer, load_tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.mistaken_paths import refuse_stand_in
from codegen_jax.weights.base import Weights, fold_embedding_bias
from codegen_jax.weights.huggingface_layout import MP_NUM, TOP, HuggingFaceWeights, tensor_streams
from codegen_jax.weights.tensors import Tensor, open_tensors, write_tensors
from codegen_jax.weights.tokenizer_files import tokenizer_files

log = logging.getLogger(__name__)

EOS_ID = 50256  # of GPT-2's vocabulary
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
    tensors = open_tensors(folder)
    embedding = tensors.get(TOP["embedding"])
    is_table = embedding is not None and len(embedding.shape) == 2
    config = parse_config(folder / "config.json", written, embedding if is_table else None)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    eos_id = written.get("eos_token_id")
    if tokenizer is not None and eos_id != tokenizer.eos_id:
        log.warning(f"{folder}: config.json says eos_token_id {eos_id}; the tokenizer's {tokenizer.eos_id} is used")
    groups = written.get("mp_num", MP_NUM) if mp_num is None else mp_num
    return HuggingFaceWeights(tensors, config, groups, tokenizer, str(folder))


def parse_config(path: Path, written: Mapping[str, Any], embedding: Tensor | None) -> CodeGenConfig:
    """Our config from a config.json; vocabulary and dtype from the embedding, since files in the wild err there."""
    model_type = written.get("model_type")
    hint = "; of what convert --to gptj made, give the source" if model_type == "gptj" else ""
    message = f"{path}: model_type is {model_type}, not codegen, and only CodeGen models are read{hint}"
    require(model_type == "codegen", message)
    quantized = written.get("quantization_config")
    require(not quantized, f"{path}: quantized weights, which are not read; give the model that they were made of")
    values: dict[str, Any] = {"head_dim": 0, "mp_num": MP_NUM} | DEFAULTS
    for name, default in values.items():
        value = written.get(name)
        types = (int, float) if isinstance(default, float) else type(default)
        require(
            value is None or isinstance(value, types), f"{path}: {name} is {value!r}, not a {type(default).__name__}"
        )
    values |= {name: value for name, value in written.items() if value is not None}
    for name, supported in SUPPORTED.items():
        require(values[name] in supported, f"{path}: {name} {values[name]} is not supported; {supported[0]} is")
    n_embd, n_inner = values["n_embd"], values.get("n_inner", 4 * values["n_embd"])
    require(n_inner == 4 * n_embd, f"{path}: n_inner {n_inner} is not supported; 4 x n_embd = {4 * n_embd} is")
    vocab_size, dtype = values["vocab_size"], "float32"
    if embedding is not None and embedding.shape[:1] != (vocab_size,):
        log.warning(
            f"{path}: vocab_size is {vocab_size}, but the embedding has {embedding.shape[0]} rows, which are kept"
        )
        vocab_size = embedding.shape[0]
    if embedding is not None and embedding.dtype != np.float32:
        dtype = "bfloat16"
    said = written.get("dtype", written.get("torch_dtype"))
    if embedding is not None and said not in (None, "auto", embedding.dtype.name):
        log.warning(f"{path}: says {said}, but the weights are {embedding.dtype.name}, which is kept")
    return CodeGenConfig(
        **{name: values[name] for name in ("n_layer", "n_embd", "n_head", "rotary_dim", "n_positions", "head_dim")},
        layer_norm_epsilon=float(values["layer_norm_epsilon"]),
        vocab_size=vocab_size,
        dtype=dtype,
    )


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
    folder.mkdir()
    write_tensors(folder, dict(tensor_streams(weights, None if gptj else mp_num)), progress)
    files = {} if weights.tokenizer is None else tokenizer_files(weights.tokenizer, config.n_positions)
    eos_id = EOS_ID if weights.tokenizer is None else weights.tokenizer.eos_id
    model = {
        "architectures": ["GPTJForCausalLM" if gptj else "CodeGenForCausalLM"],
        "model_type": "gptj" if gptj else "codegen",
        "torch_dtype": weights.dtype("embedding").name,
        "n_ctx": config.n_positions,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        **DEFAULTS,
        **{name: getattr(config, name) for name in DEFAULTS.keys() & vars(config).keys()},
    }
    if mp_num != MP_NUM and not gptj:
        log.warning(
            f"qkv_proj is written in {mp_num} groups; transformers' CodeGen reads {MP_NUM} and would err silently"
        )
        model["mp_num"] = mp_num
    files["config.json"] = _json(model)
    files["generation_config.json"] = _json({"bos_token_id": eos_id, "eos_token_id": eos_id})
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
