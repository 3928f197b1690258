"""Weights of other programs, known by the names of files or tensors: what they are, and what to do with them."""

import re
from collections.abc import Iterable
from pathlib import Path

FILES = {
    "adapter_config.json": "a PEFT adapter, which is a part of a model; merge it into the model that it was trained on "
    "(PEFT's merge_and_unload, then save_pretrained) and give that folder",
    "*.gguf": "weights for llama.cpp (GGUF), which are not read; give the Hugging Face folder that they were made of",
    "flax_model*.msgpack": "Flax weights, which are not read; load them in transformers 4 (from_flax=True), whose "
    "save_pretrained writes safetensors",
    "tf_model*.h5": "TensorFlow weights, which are not read; load them in transformers 4 (from_tf=True), whose "
    "save_pretrained writes safetensors",
    "*.onnx": "weights for ONNX, which are not read; give the Hugging Face folder that they were made of",
    "model_index.json": "a diffusers pipeline, which is no CodeGen",
}

QUANTIZED = "quantized weights, which are not read; give the model that they were made of"
TENSORS = {  # by a part of their names, between dots
    r"lora_.*|vera_.*|hada_.*|lokr_.*|b?oft_.*|ia3_l|base_layer|modules_to_save|original_module": "of a PEFT adapter; "
    "merge it into its model (merge_and_unload) and save that",
    r"qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|nested_absmax|quant_map|quant_state|W_q|weight_packed|"
    r"weight_scale": QUANTIZED,
    r"_?flat_param(_\d+)?": "of FSDP's flattened shards; save the model with StateDictType.FULL_STATE_DICT",
}


def other_tensor(names: Iterable[str]) -> str | None:
    """The first tensor that is known to be no plain weight, and what it is; None if there is none."""
    for name in names:
        for pattern, what in TENSORS.items():
            if any(re.fullmatch(pattern, part) for part in name.split(".")):
                return f"{name}: {what}"
    return None


def other_program(path: Path) -> str | None:
    """What a file, or the first known one of a folder, is; None for one that is not known."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    return next((what for pattern, what in FILES.items() if any(file.match(pattern) for file in files)), None)
