"""Read and write Hugging Face folders: config.json, weights and tokenizer files."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codegen_jax.data.tokenizer import has_tokenizer, load_tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.mistaken_paths import read_text, reject_placeholder
from codegen_jax.weights.base import Weights, fold_embedding_bias
from codegen_jax.weights.generation_config import (
    CONFIG,
    GENERATION_CONFIG,
    fit_to_tokenizer,
    read_generation_config,
    with_defaults,
)
from codegen_jax.weights.huggingface_config import DEFAULTS, parse_config, refuse_other_model
from codegen_jax.weights.huggingface_layout import MP_NUM, HuggingFaceWeights, tensor_streams
from codegen_jax.weights.tensor_names import plain_tensors
from codegen_jax.weights.tensors import open_tensors, write_tensors
from codegen_jax.weights.tokenizer_files import tokenizer_files

log = logging.getLogger(__name__)


def open_huggingface(folder: Path, mp_num: int | None = None) -> HuggingFaceWeights:
    """Open a folder written by `save_pretrained`: safetensors or .bin, single files or shards.

    Fields that are often wrong in config.json are taken from the weights and the tokenizer, with a warning.

    Args:
        folder: the folder.
        mp_num: groups in qkv_proj; None reads it from config.json, with `MP_NUM` as the default.

    Raises:
        UserError: if the model is not a CodeGen or its files are damaged.
    """
    path = folder / "config.json"
    reject_placeholder(path)
    try:
        written = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error
    require(isinstance(written, dict), f"{path}: must contain a JSON object, not a {type(written).__name__}")
    refuse_other_model(path, written)
    require(
        not (folder / "adapter_config.json").exists(),
        f"{folder}: contains a model and a PEFT adapter, which transformers would apply to it; merge them "
        "(merge_and_unload, then save_pretrained), or remove adapter_config.json to ignore the adapter",
    )
    tensors = plain_tensors(str(folder), open_tensors(folder))
    config = parse_config(path, written, tensors)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if mp_num is None and "mp_num" in written:
        mp_num = int(written["mp_num"])
        require(
            mp_num > 0 and config.n_head % mp_num == 0,
            f"{path}: mp_num: {mp_num} does not divide the {config.n_head} heads; set it to the number of groups in "
            "qkv_proj",
        )
    weights = HuggingFaceWeights(tensors, config, MP_NUM if mp_num is None else mp_num, tokenizer, str(folder))
    weights.generation_config = read_generation_config(folder, written)
    if tokenizer is not None:
        weights.generation_config = fit_to_tokenizer(weights.generation_config, tokenizer, str(folder))
    return weights


def write_huggingface(
    weights: Weights, folder: Path, progress: Callable[[int], object], *, gptj: bool = False, mp_num: int = MP_NUM
) -> None:
    """Write a folder that transformers loads: config.json, generation_config.json, safetensors, tokenizer files.

    Args:
        weights: the weights; an embedding bias is folded in.
        folder: a folder that does not exist yet.
        progress: called with the number of bytes of each chunk written.
        gptj: write GPT-J's layout, for engines without CodeGen support: separate q, k and v, each in head order.
        mp_num: groups in qkv_proj; transformers' CodeGen assumes 4.

    Raises:
        UserError: if transformers could not load the model.
    """
    weights = fold_embedding_bias(weights)
    config = weights.config
    require(
        gptj or config.n_head % mp_num == 0,
        f"mp_num: {mp_num} does not divide the {config.n_head} heads, so the model can't be written as a CodeGen",
    )
    require(
        config.head_dim * config.n_head == config.n_embd,
        f"model.head_dim: {config.head_dim} x {config.n_head} heads does not equal n_embd = {config.n_embd}, so "
        "transformers cannot load the model",
    )
    files = {} if weights.tokenizer is None else tokenizer_files(weights.tokenizer, config.n_positions)
    folder.mkdir()
    write_tensors(folder, dict(tensor_streams(weights, None if gptj else mp_num)), progress)
    generation_config = with_defaults(weights.generation_config, weights.tokenizer)
    model = {
        "architectures": ["GPTJForCausalLM" if gptj else "CodeGenForCausalLM"],
        "model_type": "gptj" if gptj else "codegen",
        "torch_dtype": weights.dtype("embedding").name,
        "n_ctx": config.n_positions,
        **generation_config[CONFIG],
        **DEFAULTS,
        **{name: getattr(config, name) for name in DEFAULTS.keys() & vars(config).keys()},
    }
    if mp_num != MP_NUM and not gptj:
        log.warning(
            f"qkv_proj is written in {mp_num} groups, but transformers' CodeGen assumes {MP_NUM} and would silently "
            "give wrong results"
        )
        model["mp_num"] = mp_num
    files["config.json"] = _json(model)
    files["generation_config.json"] = _json(generation_config[GENERATION_CONFIG])
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)  # additional_chat_templates/
        (folder / name).write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
