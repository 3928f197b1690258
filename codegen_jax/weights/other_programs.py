"""Weights of other programs, known by their files' names: what they are, and what to do with them."""

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


def other_program(path: Path) -> str | None:
    """What a file, or the first known one of a folder, is; None for one that is not known."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    return next((what for pattern, what in FILES.items() if any(file.match(pattern) for file in files)), None)
