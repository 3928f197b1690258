"""Named tensors in safetensors and PyTorch .bin files, single or sharded: read lazily, written as a stream."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from codegen_jax.errors import UserError, listed, require
from codegen_jax.mistaken_paths import read_text, reject_placeholder
from codegen_jax.weights.other_programs import other_program

DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
}
UNSUPPORTED = {  # dtypes that are only named in messages
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
    "C128": np.dtype(np.complex128),
    **{f"{kind.upper()}{bits}": np.dtype(f"{kind}{bits // 8}") for kind in "iu" for bits in (8, 16, 32, 64)},
}

STATE_DICT = "; save only the model's weights: torch.save(model.state_dict(), FILE)"


class Tensor(Protocol):
    """Interface to a stored tensor; a NumPy array satisfies it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class SafetensorsTensor:
    """A tensor in a .safetensors file. Each read reopens it, since a permanent mapping's pages count as memory."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        with safe_open(self.path, "numpy") as file:
            return file.get_slice(self.name)[index]


@dataclass(frozen=True)
class TorchTensor:
    """A tensor in a .bin file, which is memory-mapped anew for each read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        import torch

        tensor = _load_torch(self.path)[self.name].detach()  # some files contain nn.Parameters, which NumPy rejects
        if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16 of its own
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)[index]
        return tensor.numpy()[index]


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Open the tensors of a Hugging Face folder. safetensors is preferred to .bin, and a single file to shards.

    Raises:
        UserError: if there are no tensors, a file is missing, truncated, corrupt or only a Git LFS pointer, or a pickle
            refers to code.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _open_shards(index)
    not_found = "no model.safetensors or pytorch_model.bin found, either as a single file or as shards with an index"
    raise UserError(f"{folder}: {other_program(folder) or not_found}")


def open_file(path: Path) -> dict[str, Tensor]:
    """Open the tensors of a .safetensors or .bin file; see `open_tensors`."""
    reject_placeholder(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_shards(index: Path) -> dict[str, Tensor]:
    """Open each tensor of an index in its listed file; shards may also contain other tensors or stale copies."""
    reject_placeholder(index)
    try:
        weight_map = {str(name): str(file) for name, file in json.loads(read_text(index))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a shard index ({error}); download it again") from error
    shards = sorted(set(weight_map.values()))
    for name in shards:
        require(Path(name).name == name, f"{index}: refers to {name}, which is not a file in the same folder")
        require(
            (index.parent / name).is_file(),
            f"{index.parent / name}: this shard of {index.name} is missing; download it",
        )
    opened = {name: open_file(index.parent / name) for name in shards}
    missing = [f"{file} has no {name}" for name, file in weight_map.items() if name not in opened[file]]
    require(not missing, f"{index}: does not match its shards: {listed(missing)}; download the index and shards again")
    return {name: opened[file][name] for name, file in weight_map.items()}


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: SafetensorsTensor(path, name, tuple(s.get_shape()), _dtype(s.get_dtype()))
                for name, s in slices.items()
            }
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or corrupt ({error}); download it again") from error


def _dtype(code: str | None) -> np.dtype:
    """The dtype of a safetensors code; void if it is unknown."""
    return (DTYPES | UNSUPPORTED).get(code or "", np.dtype("V"))


def _open_torch(path: Path) -> dict[str, Tensor]:
    import torch

    codes = {dtype.name: code for code, dtype in (DTYPES | UNSUPPORTED).items()}  # PyTorch uses NumPy's dtype names
    tensors = _load_torch(path)
    for name, value in tensors.items():
        require(
            isinstance(value, torch.Tensor), f"{path}: {name} is a {type(value).__name__}, not a tensor{STATE_DICT}"
        )
        require(not value.is_meta, f"{path}: {name} is on PyTorch's meta device and has no values")
        require(
            value.layout is torch.strided,
            f"{path}: {name} has the unsupported layout {value.layout}; save it as a dense tensor (to_dense)",
        )
    return {
        name: TorchTensor(path, name, tuple(t.shape), _dtype(codes.get(str(t.dtype).removeprefix("torch."))))
        for name, t in tensors.items()
    }


def _load_torch(path: Path) -> dict[str, Any]:
    """Load a state dict, memory-mapped. Only tensors are unpickled; any other global in a pickle is refused by name."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: reading .bin files requires PyTorch; pip install 'codegen_jax[torch]'") from error

    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    require(is_zip, f"{path}: truncated, corrupt, or older than PyTorch 1.6; load and save it again with torch")
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # for a damaged file, PyTorch raises RuntimeError, UnpicklingError, EOFError, ...
        if name := _refused_global(error):
            raise UserError(
                f"{path}: its pickle refers to {name}, which weights never need; the file was not loaded"
            ) from error
        raise UserError(f"{path}: truncated or corrupt ({str(error).splitlines()[0]}); download it again") from error
    require(
        isinstance(tensors, dict), f"{path}: contains a {type(tensors).__name__}, not a dict of tensors{STATE_DICT}"
    )
    return tensors


def _refused_global(error: Exception) -> str | None:
    """The global that `weights_only` refused, which PyTorch reports only in the text of an UnpicklingError."""
    refused = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
    return (refused[1] or refused[2]) if refused else None


@dataclass(frozen=True)
class TensorStream:
    """A tensor to write: `chunks()` yields its elements in C order, in arrays of any shape."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, tensors: Mapping[str, TensorStream], progress: Callable[[int], object], max_shard_size: str = "5GB"
) -> None:
    """Write model.safetensors, or shards with an index if the tensors exceed max_shard_size.

    safetensors' own writer needs all tensors of a file in memory, up to 5 GB; this writer needs only a few chunks.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        _write_safetensors(folder / file, {name: tensors[name] for name in names}, progress)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, tensors: Mapping[str, TensorStream], progress: Callable[[int], object]) -> None:
    """Write one file: 8 bytes for the header length, a JSON header padded to a multiple of 8 bytes, then the tensors in
    little-endian order."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    chunks = (chunk for tensor in tensors.values() for chunk in tensor.chunks())
    with path.open("wb") as file, ThreadPoolExecutor(2) as threads:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        upcoming, flushing = threads.submit(next, chunks, None), threads.submit(os.fsync, file.fileno())
        while (chunk := upcoming.result()) is not None:
            upcoming = threads.submit(next, chunks, None)  # prepared while this chunk is written
            file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            progress(chunk.nbytes)
            if flushing.done():
                flushing.result()  # raises disk errors
                flushing = threads.submit(os.fsync, file.fileno())  # keeps the disk busy throughout
        flushing.result()
        file.flush()
        os.fsync(file.fileno())
