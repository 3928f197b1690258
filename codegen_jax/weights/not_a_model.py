"""Messages for paths without a model that we can read: what the path is, and what to use or do instead."""

from pathlib import Path

from codegen_jax.mistaken_paths import holds, instead, refuse_stand_in
from codegen_jax.weights.jaxformer import is_jaxformer
from codegen_jax.weights.other_programs import other_program
from codegen_jax.weights.run_folder import RUN_FILE, find_checkpoint

PARTS = {  # by file pattern: what a folder with such a file contains, and what it lacks
    "*.safetensors": "weights without their config.json; copy it from the model that they are of",
    "*.bin": "weights without their config.json; copy it from the model that they are of",
    "manifest.json": "token files, not a model; a model is what train writes",
    "tokenizer.*": "a tokenizer without weights",
    "vocab.json": "a tokenizer without weights",
}


def what_it_is(path: Path) -> str:
    """The end of a message about an existing path that is not a model."""
    above = next((parent for parent in list(path.absolute().parents)[:2] if _is_model(parent)), None)
    if not path.is_dir():
        refuse_stand_in(path)
        instead_of_file = f"; give {above}" if above else ""
        return other_program(path) or f"a file, where a folder is read{instead_of_file}"
    if above:
        return f"a part of a model; give {above}"
    if (path / RUN_FILE).exists():
        return f"a run that has no whole checkpoint yet; codegen-jax train {path} goes on with it"
    what = other_program(path)
    if what:
        return what
    names = sorted(file.name for file in path.iterdir())
    if names == [".git"]:
        return "a git repository without its files; git checkout main brings them, and git lfs pull the large ones"
    deeper = instead(path, _is_model)
    if deeper:
        return f"a folder above a model{deeper}"
    part = next((part for pattern, part in PARTS.items() if any(path.glob(pattern))), None)
    nothing = "no whole checkpoint here, nor a Hugging Face model (config.json) or jaxformer's (model/0.npz)"
    return part or f"{nothing}; it {holds(names)}"


def _is_model(folder: Path) -> bool:
    config = folder / "config.json"
    is_huggingface = config.is_file() and b'"model_type"' in config.read_bytes()
    return is_huggingface or is_jaxformer(folder) or find_checkpoint(folder) is not None
