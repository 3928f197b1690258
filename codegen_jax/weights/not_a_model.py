"""Messages for paths without a model that we can read: what the path is, and what to use or do instead."""

from pathlib import Path

from codegen_jax.mistaken_paths import contains, instead, reject_placeholder
from codegen_jax.weights.jaxformer import is_jaxformer
from codegen_jax.weights.other_programs import other_program
from codegen_jax.weights.run_folder import RUN_FILE, find_checkpoint

PARTS = {  # by file pattern: what a folder with such a file contains, and what it lacks
    "adapter_config.json": "a PEFT adapter without its tensors; download them",
    "*.safetensors": "weights without their config.json; copy it from the original model",
    "*.bin": "weights without their config.json; copy it from the original model",
    "manifest.json": "token files, not a model; use the output folder of codegen-jax train",
    "tokenizer.*": "a tokenizer without weights",
    "vocab.json": "a tokenizer without weights",
}


def describe(path: Path) -> str:
    """The end of a message about an existing path that is not a model."""
    above = next((parent for parent in list(path.absolute().parents)[:2] if _is_model(parent)), None)
    if not path.is_dir():
        reject_placeholder(path)
        instead_of_file = f"; use {above}" if above else ""
        return other_program(path) or f"is a file, but must be a folder{instead_of_file}"
    if above:
        return f"a part of a model; use {above}"
    if (path / RUN_FILE).exists():
        return f"a run without a complete checkpoint; codegen-jax train {path} resumes it"
    other = other_program(path)
    if other:
        return other
    names = sorted(file.name for file in path.iterdir())
    if names == [".git"]:
        return "a git repository without its files; run git checkout main, and git lfs pull for the large files"
    below = instead(path, _is_model)
    if below:
        return f"a folder above a model{below}"
    part = next((part for pattern, part in PARTS.items() if any(path.glob(pattern))), None)
    not_found = "no complete checkpoint, Hugging Face model (config.json) or jaxformer model (model/0.npz) found"
    return part or f"{not_found}; the folder {contains(names)}"


def _is_model(folder: Path) -> bool:
    config = folder / "config.json"
    is_huggingface = config.is_file() and b'"model_type"' in config.read_bytes()
    return is_huggingface or is_jaxformer(folder) or find_checkpoint(folder) is not None
