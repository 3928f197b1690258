"""Read checkpoints of jaxformer, the authors' training library: STEP/model/0.npz, with 14 arrays.

The arrays are in the order of Haiku's sorted names (jaxformer's checkpoint.py). Every process wrote the whole model, so
file 0 is complete. Kernels are [in, out] with layers stacked. The qkv columns are in mp_num groups of q, v, k, as in
transformers' layout. bfloat16 arrays are stored as two raw bytes (dtype V2).

Axes: L layers, D n_embd, H heads, K head_dim, V vocabulary.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import UserError, listed, require
from codegen_jax.fields import check_type
from codegen_jax.mistaken_paths import read_text, reject_placeholder
from codegen_jax.weights.base import Index, StoredWeights, matrix_shapes
from codegen_jax.weights.huggingface_layout import MP_NUM, PROJECTIONS, head_groups, rotary_order
from codegen_jax.weights.tensors import DTYPES

WEIGHTS = Path("model") / "0.npz"
LEAVES = (  # in file order, by Haiku module: embed (1 line), proj, i.e. the head (1 line), transformer (2 lines)
    *("embedding_bias", "embedding"),
    *("ln_f.bias", "ln_f.scale", "head_bias", "head"),
    *("blocks.attention_out", "qkv", "blocks.fc_in_bias", "blocks.fc_in", "blocks.fc_out_bias", "blocks.fc_out"),
    *("blocks.ln.bias", "blocks.ln.scale"),
)
HEADS = {1024: (16, 32), 2048: (16, 64), 2560: (32, 64), 4096: (16, 64), 6144: (24, 64)}  # n_embd: n_head, rotary_dim


def is_jaxformer(folder: Path) -> bool:
    return (folder / WEIGHTS).exists()


class JaxformerWeights(StoredWeights):
    """A jaxformer checkpoint.

    Args:
        folder: the folder that contains model/0.npz. The number of heads cannot be inferred from shapes: it is taken
            from `config`, else from a jaxformer config.json (model_heads, model_pe_rotary_dims) next to model/ or one
            folder above, else from the published model of this width.
        mp_num: groups in the qkv columns; None means `MP_NUM`.
        config: the model config, if it is known; it is ignored if its width differs.

    Raises:
        UserError: if the file is damaged or does not contain these 14 arrays, or the number of heads is unknown.
    """

    def __init__(self, folder: Path, mp_num: int | None = None, config: CodeGenConfig | None = None):
        mp_num = MP_NUM if mp_num is None else mp_num
        arrays = _open_npz(folder / WEIGHTS)
        require(
            len(arrays) == len(LEAVES), f"{folder / WEIGHTS}: contains {len(arrays)} arrays, expected {len(LEAVES)}"
        )
        self.leaves = dict(zip(LEAVES, arrays, strict=True))
        super().__init__(str(folder), self._find_config(folder, config), None)
        self.mp_num = mp_num
        require(
            mp_num > 0 and self.config.n_head % mp_num == 0,
            f"mp_num: {mp_num} does not divide the {self.config.n_head} heads of {folder}",
        )
        self._check_shapes(folder / WEIGHTS)

    def dtype(self, name: str) -> np.dtype:
        return self._leaf(name).dtype

    def read_stored(self, name: str, index: Index) -> np.ndarray:
        leaf, config = self._leaf(name), self.config
        if name in PROJECTIONS:
            L, D, H, K = index
            order = rotary_order(config, name)[K]
            groups = head_groups(config, self.mp_num, name, H)
            regions_LDHK = [
                leaf[L, D, channels].reshape(L.stop - L.start, D.stop - D.start, -1, config.head_dim)[..., order]
                for _, channels in groups
            ]
            return np.concatenate(regions_LDHK, axis=2)
        if name == "blocks.attention_out":
            L, H, K, D = index
            channels = slice(H.start * config.head_dim, H.stop * config.head_dim)
            region_LHKD = leaf[L, channels, D].reshape(L.stop - L.start, -1, config.head_dim, D.stop - D.start)
            return region_LHKD[:, :, K]
        return leaf[index]

    def stored_name(self, name: str, layer: int | None) -> str:
        described = f"{self._leaf(name).name} ({'qkv' if name in PROJECTIONS else name})"
        return described if layer is None else f"{described} of layer {layer}"

    def _leaf(self, name: str) -> "NpzArray":
        return self.leaves["qkv" if name in PROJECTIONS else name]

    def _find_config(self, folder: Path, config: CodeGenConfig | None) -> CodeGenConfig:
        shapes = {name: leaf.shape for name, leaf in self.leaves.items()}
        two_axes = len(shapes["embedding"]) == 2 and len(shapes["blocks.fc_in"]) == 3
        require(two_axes, f"{folder / WEIGHTS}: not the arrays of a jaxformer checkpoint in the expected order")
        V, D = shapes["embedding"]
        n_positions = 2048
        if config is not None and config.n_embd == D:  # otherwise it belongs to another model
            heads, n_positions = (config.n_head, config.rotary_dim, config.head_dim), config.n_positions
        elif files := [path for path in (folder / "config.json", folder.parent / "config.json") if path.exists()]:
            heads = _read_heads(files[0])
        else:
            require(
                D in HEADS,
                f"{folder}: the weights do not determine the number of heads; put the run's config.json (with "
                "model_heads and model_pe_rotary_dims) next to model/",
            )
            heads = (*HEADS[D], 0)
        n_head, rotary_dim, head_dim = heads
        return CodeGenConfig(
            n_layer=shapes["blocks.fc_in"][0],
            n_embd=D,
            n_head=n_head,
            rotary_dim=rotary_dim,
            vocab_size=V,
            n_positions=n_positions,
            head_dim=head_dim,
            embedding_bias=True,
            dtype="float32" if self.leaves["embedding"].dtype == np.float32 else "bfloat16",
        )

    def _check_shapes(self, path: Path) -> None:
        shapes = dict(matrix_shapes(self.config))
        L, D, HK = shapes["blocks.query"]
        shapes["qkv"] = (L, D, len(PROJECTIONS) * HK)
        problems = [
            f"{name} is {leaf.dtype} {list(leaf.shape)}, expected float {list(shapes[name])}"
            for name, leaf in self.leaves.items()
            if leaf.shape != shapes[name] or leaf.dtype not in DTYPES.values()
        ]
        message = f"{path}: not the arrays of a jaxformer checkpoint in the expected order: {listed(problems)}"
        require(not problems, message)


def _read_heads(path: Path) -> tuple[int, int, int]:
    """n_head, rotary_dim and head_dim from a jaxformer config."""
    try:
        written = json.loads(read_text(path))
        heads = written["model_heads"], written["model_pe_rotary_dims"], written.get("model_head_dim", 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a jaxformer config (missing or invalid: {error})") from error
    for name, value in zip(("model_heads", "model_pe_rotary_dims", "model_head_dim"), heads, strict=True):
        check_type(f"{path}: {name}", value, int)
    return heads


@dataclass(frozen=True)
class NpzArray:
    """An array in an .npz file; if uncompressed, it is memory-mapped anew for each read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    offset: int | None

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.offset is None:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[self.name].view(self.dtype)[index]
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)[index].view(np.ndarray)


def _open_npz(path: Path) -> list[NpzArray]:
    """Open the arrays in numerical order (arr_0, arr_1, ...). Nothing is unpickled."""
    reject_placeholder(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            number = lambda info: int(info.filename.removeprefix("arr_").removesuffix(".npy"))
            infos = sorted(archive.infolist(), key=number)
            return [_open_npy(path, raw, info, archive) for info in infos]
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise UserError(f"{path}: truncated, corrupt or not from jaxformer ({error}); download it again") from error


def _open_npy(path: Path, raw: BinaryIO, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> NpzArray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(member)
        header_size = member.tell()
    require(
        not dtype.hasobject,
        f"{path}: {info.filename} contains pickled objects, which weights never need; the file was not loaded",
    )
    offset = None
    if info.compress_type == zipfile.ZIP_STORED:
        raw.seek(info.header_offset + 26)  # the lengths of the name and of the extra field, which precede the data
        lengths = raw.read(4)
        name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        offset = info.header_offset + 30 + name + extra + header_size
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    return NpzArray(path, info.filename.removesuffix(".npy"), shape, dtype, "F" if is_fortran else "C", offset)
