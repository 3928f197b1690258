"""PEFT's adapter folders: adapter_config.json and adapter_model.safetensors, read and written.

Fields that change what an adapter computes are honoured or refused by name; fields that are not known are refused if
they are set.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from codegen_jax.config import LINEAR_LAYERS, CodeGenConfig
from codegen_jax.data.tokenizer import has_tokenizer, load_tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.mistaken_paths import read_text
from codegen_jax.weights.adapter import Adapter, Rows, Update
from codegen_jax.weights.huggingface_layout import MP_NUM, TOP, tensor_shapes
from codegen_jax.weights.tensors import DTYPES, open_file
from codegen_jax.weights.tokenizer_files import tokenizer_files

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HONOURED = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices"),
}
# these say where an adapter comes from, concern only training, or have no effect on CodeGen's layers
WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "eva_config"),
}
NEUTRAL = {"bias": "none"}  # fields whose neutral value is not null, false or empty
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")  # the others replace weights of the model


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists()


def read_peft(folder: Path, model: CodeGenConfig, mp_num: int = MP_NUM) -> Adapter:
    """Read an adapter folder for a model of these sizes.

    Args:
        folder: a folder written by PEFT's `save_pretrained`, or by `write_peft`.
        model: the config of the model that it is for.
        mp_num: groups of that model's qkv_proj.

    Raises:
        UserError: if the adapter is for other sizes or another family of models, has settings that are not supported,
            or is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error
    require(isinstance(config, dict), f"{path}: must contain a JSON object, not a {type(config).__name__}")
    _check_config(path, config)
    file = next((f for f in (folder / TENSORS_FILE, folder / "adapter_model.bin") if f.exists()), folder / TENSORS_FILE)
    require(file.exists(), f"{file}: missing; download it")
    known = tensor_shapes(model)
    matrices = _matrices(model)
    low_rank: dict[str, dict[str, np.ndarray]] = {}
    replaced: dict[str, np.ndarray] = {}
    rows: dict[str, Rows] = {}
    for name, tensor in open_file(file).items():
        require(tensor.dtype in DTYPES.values(), f"{file}: {name} has dtype {tensor.dtype.name}, expected a float")
        value = np.array(tensor[tuple(slice(0, size) for size in tensor.shape)])
        module, part = _split(file, name)
        if f"{module}.{part}" in known:
            _check_shape(file, name, value, known[f"{module}.{part}"])
            replaced[f"{module}.{part}"] = value
            continue
        if part == "tokens":
            require(
                f"{module}.weight" in (TOP["embedding"], TOP["head"]),
                f"{file}: {name}: only the embedding and lm_head can have trained rows; merge the adapter with PEFT",
            )
            ids = _token_ids(path, config.get("trainable_token_indices"), module)
            _check_shape(file, name, value, (len(ids), model.n_embd))
            for id in ids:
                is_id = 0 <= id < model.vocab_size
                require(is_id, f"{path}: trainable_token_indices: must be in [0, {model.vocab_size}), got {id}")
            rows[f"{module}.weight"] = Rows(ids, value)
        else:
            _check_module(file, module, matrices)
            low_rank.setdefault(module, {})[part] = value
    updates = {
        f"{module}.weight": _update(path, file, config, module, parts, known) for module, parts in low_rank.items()
    }
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    adapter = Adapter(str(folder), config, mp_num, updates, replaced, rows, tokenizer)
    _check_complete(path, config, model, adapter)
    adapter.require_finite()
    return adapter


def write_peft(adapter: Adapter, folder: Path, n_positions: int) -> int:
    """Write a folder that PEFT loads; return the bytes of its tensors."""
    tensors: dict[str, np.ndarray] = {}
    for name, update in adapter.updates.items():
        module = PREFIX + name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": update.a, f"{module}.lora_B.weight": update.b}
        if update.magnitude is not None:
            tensors[f"{module}.lora_magnitude_vector"] = update.magnitude
    for name, value in adapter.replaced.items():
        module, _, part = name.rpartition(".")
        base_layer = ".base_layer" if f"{module}.weight" in adapter.updates else ""
        tensors[f"{PREFIX}{module}{base_layer}.{part}"] = value
    for name, rows in adapter.rows.items():
        tensors[f"{PREFIX}{name.removesuffix('.weight')}.token_adapter.trainable_tokens_delta"] = rows.values
    folder.mkdir()
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(tensors, folder / TENSORS_FILE, {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(adapter.config, indent=2, sort_keys=True) + "\n")
    if adapter.tokenizer is not None:
        for name, content in tokenizer_files(adapter.tokenizer, n_positions).items():
            (folder / name).parent.mkdir(exist_ok=True)  # additional_chat_templates/
            (folder / name).write_bytes(content)
    return sum(value.nbytes for value in tensors.values())


def _check_config(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    require(kind == "LORA", f"{path}: peft_type: must be LORA, got {kind}; merge it with PEFT (merge_and_unload)")
    init = config.get("init_lora_weights", True)
    require(
        init in PLAIN_INITS,
        f"{path}: init_lora_weights: {init} changes the model's own weights; save the adapter as a plain LoRA "
        "(PEFT's path_initial_model_for_weight_conversion)",
    )
    for name in sorted(config.keys() - HONOURED - WITHOUT_EFFECT - {"init_lora_weights"}):
        value = config[name]
        is_neutral = value == NEUTRAL[name] if name in NEUTRAL else not value
        require(is_neutral, f"{path}: {name}: {value} is not supported; merge the adapter with PEFT (merge_and_unload)")
    for name, kind, is_valid in (
        ("r", "a positive whole number", lambda value: isinstance(value, int) and value > 0),
        ("lora_alpha", "a number", lambda value: isinstance(value, int | float)),
    ):
        pattern = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[name]
        patterns = config.get(pattern) or {}
        require(isinstance(patterns, dict), f"{path}: {pattern}: must be an object, got {patterns!r}")
        for field, value in ((name, config.get(name, 8)), *((pattern, value) for value in patterns.values())):
            require(is_valid(value), f"{path}: {field}: must be {kind}, got {value!r}")
    lists = "a list of names or a regular expression"
    for name in ("target_modules", "exclude_modules"):
        value = config.get(name) or []
        require(isinstance(value, str) or _is_list(value, str), f"{path}: {name}: must be {lists}, got {value!r}")
    saved = config.get("modules_to_save") or []
    require(_is_list(saved, str), f"{path}: modules_to_save: must be a list of names, got {saved!r}")
    layers, pattern = config.get("layers_to_transform") or [], config.get("layers_pattern") or []
    is_layers = isinstance(layers, int) or _is_list(layers, int)
    require(is_layers, f"{path}: layers_to_transform: must be a whole number or a list of them, got {layers!r}")
    is_names = isinstance(pattern, str) or _is_list(pattern, str)
    require(is_names, f"{path}: layers_pattern: must be a name or a list of names, got {pattern!r}")
    expressions = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
    for name in ("rank_pattern", "alpha_pattern", *expressions):
        patterns = config.get(name) or []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{path}: {name}: {pattern!r} is not a regular expression ({error})") from error


def _split(file: Path, name: str) -> tuple[str, str]:
    """A tensor's module, and its part: a, b, magnitude, tokens, or weight or bias of a whole module."""
    inner = name.removeprefix(PREFIX)
    suffixes = {
        ".lora_A.weight": "a",
        ".lora_B.weight": "b",
        ".lora_magnitude_vector": "magnitude",
        ".lora_magnitude_vector.weight": "magnitude",  # in folders of PEFT before 0.12
        ".token_adapter.trainable_tokens_delta": "tokens",
        ".base_layer.weight": "weight",
        ".base_layer.bias": "bias",
        ".weight": "weight",
        ".bias": "bias",
    }
    is_embedding = "lora_embedding_" not in inner
    require(is_embedding, f"{file}: {name}: LoRA of the embedding is not supported; merge the adapter with PEFT")
    suffix = next((suffix for suffix in suffixes if inner.endswith(suffix)), None)
    require(name.startswith(PREFIX) and suffix is not None, f"{file}: {name}: not a tensor of a LoRA adapter")
    assert suffix is not None
    return inner.removesuffix(suffix), suffixes[suffix]


def _check_module(file: Path, module: str, matrices: Iterable[str]) -> None:
    found = module in matrices
    names = ", ".join((*LINEAR_LAYERS, "lm_head"))
    require(
        found,
        f"{file}: adapts {module}, which this CodeGen does not have; an adapter can have {names} (is it for another "
        "model?)",
    )


def _check_shape(file: Path, name: str, value: np.ndarray, expected: tuple[int, ...]) -> None:
    require(
        value.shape == expected,
        f"{file}: {name} has shape {list(value.shape)}, expected {list(expected)}; the adapter is for a model of other "
        "sizes",
    )


def _update(
    path: Path,
    file: Path,
    config: dict[str, Any],
    module: str,
    parts: dict[str, np.ndarray],
    known: dict[str, tuple[int, ...]],
) -> Update:
    rank = _of_pattern(config, "rank_pattern", module, config.get("r", 8))
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    outputs, inputs = known[f"{module}.weight"]
    names = {"a": "lora_A.weight", "b": "lora_B.weight"}
    if config.get("use_dora"):
        names["magnitude"] = "lora_magnitude_vector"
    for part, name in names.items():
        require(part in parts, f"{file}: {module} has no {name}")
    found = next(iter(parts["a"].shape), 0)
    require(found == rank, f"{file}: {module} has rank {found}, but {path.name} says {rank}")
    expected = {"a": (rank, inputs), "b": (outputs, rank), "magnitude": (outputs,)}
    for part, name in names.items():
        _check_shape(file, f"{PREFIX}{module}.{name}", parts[part], expected[part])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return Update(parts["a"], parts["b"], scale, parts["magnitude"] if config.get("use_dora") else None)


def _of_pattern(config: dict[str, Any], field: str, module: str, default: Any) -> Any:
    """A module's rank or alpha: of the first pattern that matches the end of its name, as in PEFT."""
    for pattern, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _token_ids(path: Path, indices: Any, module: str) -> list[int]:
    """The trained ids of a module: of the embedding if there is only a list."""
    named = indices if isinstance(indices, dict) else {"wte": indices}
    for name, ids in named.items():
        if _is_list(ids, int) and (module == name or module.endswith(f".{name}")):
            return ids
    raise UserError(f"{path}: trainable_token_indices: has no ids for {module}")


def _check_complete(path: Path, config: dict[str, Any], model: CodeGenConfig, found: Adapter) -> None:
    """Check that the folder has the tensors that its config says, no more and no fewer.

    PEFT ignores tensors of other modules and layers, and leaves modules without tensors as they are.
    """
    saved = config.get("modules_to_save") or []
    is_within = lambda module, name: re.match(rf"(^|.*\.){name}($|\..*)", module) is not None
    expected = {
        module
        for module in _matrices(model)
        if _is_adapted(config, module) and not any(is_within(module, name) for name in saved)
    }
    adapted = {name.removesuffix(".weight") for name in found.updates}
    for module in sorted(expected ^ adapted):
        problem = "has tensors of a module that is not a target" if module in adapted else "has no tensors of a target"
        raise UserError(f"{path}: target_modules: the folder {problem}, {module}; download it again")
    for name in saved:
        require(
            any(is_within(tensor, name) for tensor in found.replaced),
            f"{path}: modules_to_save: the folder has no tensors of {name}; download it again",
        )
    indices = config.get("trainable_token_indices") or {}
    for name in indices if isinstance(indices, dict) else ["wte"]:
        require(
            any(_ends_with(tensor.removesuffix(".weight"), [name]) for tensor in found.rows),
            f"{path}: trainable_token_indices: the folder has no rows of {name}; download it again",
        )


def _matrices(model: CodeGenConfig) -> set[str]:
    """The modules of a model that can have an update, which all but the embedding can."""
    names = {name for name, shape in tensor_shapes(model).items() if len(shape) == 2}
    return {name.removesuffix(".weight") for name in names - {TOP["embedding"]}}


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_adapted(config: dict[str, Any], module: str) -> bool:
    """Whether PEFT adapts a module; `check_target_module_exists` in its tuners_utils.py."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if isinstance(excluded, str):
        if re.fullmatch(excluded, module):
            return False
    elif _ends_with(module, excluded):
        return False
    if targets == "all-linear":
        return _ends_with(module, LINEAR_LAYERS)
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    if module in (targets or []):
        return True
    if not _ends_with(module, targets or []):
        return False
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    if layers is None or layers == []:
        return True
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if match:
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False
