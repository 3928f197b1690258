"""Convert between the tensor layout of transformers' CodeGen and our parameters; also write GPT-J's layout.

Everything specific to that layout is here: the fused qkv_proj in groups of q, v, k, interleaved rotary channels, and
kernels stored as [out, in].

Axes: D n_embd, H heads, K head_dim, F MLP width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from codegen_jax.config import CodeGenConfig
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import listed, require
from codegen_jax.weights.base import Index, StoredWeights, Weights, matrix_shapes, shapes
from codegen_jax.weights.other_programs import QUANTIZED
from codegen_jax.weights.tensors import DTYPES, Tensor, TensorStream

MP_NUM = 4  # groups in qkv_proj of every CodeGen 1 release, one per TPU core of the authors' setup
BUFFERS = ("attn.bias", "attn.masked_bias", "attn.causal_mask", "attn.embed_positions")  # not parameters
BLOCK_BYTES = 256 << 20  # the embedding and head are written in blocks of at most this size
PROJECTIONS = ("blocks.query", "blocks.value", "blocks.key")  # in the order within a group
TOP = {  # our name -> name in transformers
    "embedding": "transformer.wte.weight",
    "ln_f.scale": "transformer.ln_f.weight",
    "ln_f.bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
    "head_bias": "lm_head.bias",
}
LAYER = {
    "blocks.ln.scale": "ln_1.weight",
    "blocks.ln.bias": "ln_1.bias",
    "blocks.query": "attn.qkv_proj.weight",
    "blocks.key": "attn.qkv_proj.weight",
    "blocks.value": "attn.qkv_proj.weight",
    "blocks.attention_out": "attn.out_proj.weight",
    "blocks.fc_in": "mlp.fc_in.weight",
    "blocks.fc_in_bias": "mlp.fc_in.bias",
    "blocks.fc_out": "mlp.fc_out.weight",
    "blocks.fc_out_bias": "mlp.fc_out.bias",
}


def rotary_order(config: CodeGenConfig, name: str) -> np.ndarray:
    """For each channel of our heads, the channel in transformers: interleaved pairs (2i, 2i+1) become
    (i, i + rotary_dim/2).

    q and k get the same permutation, so q.k is unchanged. Values are not rotated, so they keep their order.
    """
    if name == "blocks.value":
        return np.arange(config.head_dim)
    rotary = config.rotary_dim
    return np.r_[0:rotary:2, 1:rotary:2, rotary : config.head_dim]


def head_groups(config: CodeGenConfig, mp_num: int, name: str, heads: slice) -> Iterator[tuple[slice, slice]]:
    """Locate heads of query, key or value among the 3 H K output channels of qkv_proj: (heads, channels) per group.

    The channels form mp_num groups. Each contains q, **v** and k, in this order, for its share of the heads.
    """
    share = config.n_head // mp_num
    position = PROJECTIONS.index(name)
    for group in range(mp_num):
        first, last = max(heads.start, group * share), min(heads.stop, (group + 1) * share)
        if first < last:
            start = (group * 3 + position) * share + first - group * share
            channels = slice(start * config.head_dim, (start + last - first) * config.head_dim)
            yield slice(first, last), channels


def transpose_into(target: np.ndarray, source: np.ndarray) -> None:
    """target[:] = source.T in cache-sized strips: 1.4 GB/s, versus 0.3 GB/s for one assignment (16-bit dtypes)."""
    for start in range(0, source.shape[0], 64):
        target[:, start : start + 64] = source[start : start + 64].T


def read_projection(
    config: CodeGenConfig, mp_num: int, name: str, tensor: Tensor, index: Index, region_DHK: np.ndarray
) -> None:
    """Read a region of query, key or value from qkv_proj's tensor [3 H K, D], of which D may be any size."""
    D, H, channels_of_head = index
    order = rotary_order(config, name)
    for heads, channels in head_groups(config, mp_num, name, H):
        rows_HKD = tensor[channels, D].reshape(-1, config.head_dim, region_DHK.shape[0])[:, order[channels_of_head]]
        for head, rows_KD in zip(range(heads.start, heads.stop), rows_HKD, strict=True):
            transpose_into(region_DHK[:, head - H.start], rows_KD)


def projection_rows(config: CodeGenConfig, name: str, region_DHK: np.ndarray) -> np.ndarray:
    """Query, key or value as rows [H, K, D] of qkv_proj, in transformers' channel order; D may be any size."""
    rows_HKD = np.empty((*region_DHK.shape[1:], region_DHK.shape[0]), region_DHK.dtype)
    order = rotary_order(config, name)
    for head in range(rows_HKD.shape[0]):
        rows_HKD[head, order] = _transposed(region_DHK[:, head])
    return rows_HKD


def fuse_projections(config: CodeGenConfig, mp_num: int, projections: Mapping[str, np.ndarray]) -> np.ndarray:
    """qkv_proj's tensor [3 H K, D] from query, key and value [D, H, K], by our names."""
    D, H, K = projections[PROJECTIONS[0]].shape
    fused = np.empty((3 * H * K, D), projections[PROJECTIONS[0]].dtype)
    for name in PROJECTIONS:
        rows_HKD = projection_rows(config, name, projections[name])
        for heads, channels in head_groups(config, mp_num, name, slice(0, H)):
            fused[channels] = rows_HKD[heads].reshape(-1, D)
    return fused


class HuggingFaceWeights(StoredWeights):
    """The state dict of a CodeGenForCausalLM.

    Args:
        tensors: the tensors, by their names in transformers.
        config: the model config.
        mp_num: groups in qkv_proj; 8 for CodeGen2-1B, CodeGen2-3.7B and models trained on TPU v3. It cannot be inferred
            from shapes.
        tokenizer: the tokenizer, if any.
        source: name of the model for messages.

    Raises:
        UserError: for missing, unexpected or misshapen tensors.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: CodeGenConfig,
        mp_num: int = MP_NUM,
        tokenizer: Tokenizer | None = None,
        source: str = "state dict",
    ):
        super().__init__(source, config, tokenizer)
        self.tensors, self.mp_num = tensors, mp_num
        require(
            mp_num > 0 and config.n_head % mp_num == 0,
            f"mp_num: {mp_num} does not divide the {config.n_head} heads of {source}",
        )
        check_tensors(source, tensors, tensor_shapes(config))

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype, or float32 if it differs between layers."""
        if name in TOP:
            return self.tensors[TOP[name]].dtype
        found = {self._layer(i, name).dtype for i in range(self.config.n_layer)}
        return found.pop() if len(found) == 1 else np.dtype(np.float32)

    def read_stored(self, name: str, index: Index) -> np.ndarray:
        region = np.empty([s.stop - s.start for s in index], self.dtype(name))
        if name == "head":
            transpose_into(region, self.tensors[TOP[name]][index[::-1]])
        elif name in TOP:
            region[:] = self.tensors[TOP[name]][index]
        else:
            for offset, layer in enumerate(range(index[0].start, index[0].stop)):
                self._read_layer(name, self._layer(layer, name), index[1:], region[offset])
        return region

    def stored_name(self, name: str, layer: int | None) -> str:
        theirs = TOP[name] if layer is None else tensor_in_layer(layer, name)
        return getattr(self.tensors[theirs], "name", theirs)  # the name in the file may have a wrapper's prefix

    def _layer(self, layer: int, name: str) -> Tensor:
        return self.tensors[tensor_in_layer(layer, name)]

    def _read_layer(self, name: str, tensor: Tensor, index: Index, region: np.ndarray) -> None:
        K = self.config.head_dim
        if name in PROJECTIONS:
            read_projection(self.config, self.mp_num, name, tensor, index, region)
        elif name == "blocks.attention_out":
            H, channels_of_head, D = index
            for offset, head in enumerate(range(H.start, H.stop)):
                columns = slice(head * K + channels_of_head.start, head * K + channels_of_head.stop)
                transpose_into(region[offset], tensor[D, columns])
        elif len(index) == 2:
            transpose_into(region, tensor[index[::-1]])
        else:
            region[:] = tensor[index]


def tensor_in_layer(layer: int, name: str) -> str:
    """The name in transformers of a layer's part of one of our parameters."""
    return f"transformer.h.{layer}.{LAYER[name]}"


def tensor_shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of CodeGenForCausalLM, by name."""
    ours = matrix_shapes(config)

    def theirs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name in PROJECTIONS:  # fused into one tensor
            return (len(PROJECTIONS) * shape[1], shape[0])
        return shape if name == "embedding" else shape[::-1]

    top = {tensor: theirs(name, ours[name]) for name, tensor in TOP.items()}
    layer = {tensor: theirs(name, ours[name][1:]) for name, tensor in LAYER.items()}
    embedding = TOP["embedding"]
    layers = {f"transformer.h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in layer.items()}
    return {embedding: top.pop(embedding), **layers, **top}


def check_tensors(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a `UserError` that lists tensors that are missing, unexpected, misshapen or of an unsupported dtype."""
    present = {name for name in tensors if not name.endswith(BUFFERS)}
    problems = [f"missing {name}" for name in expected if name not in present]
    problems += [f"unexpected {name}" for name in sorted(present - expected.keys())]
    shared = [name for name in expected if name in present]
    for name in shared:
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        if shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)}, expected {list(expected[name])}")
        elif dtype not in DTYPES.values():
            problems.append(f"{name} has dtype {dtype.name}, expected float16, bfloat16 or float32")
    unread = {tensors[name].dtype for name in shared} - set(DTYPES.values())
    hint = ""
    if np.dtype(np.float64) in unread:
        hint = "; load the model in transformers and save it as float32 (model.float(), then save_pretrained)"
    if any(dtype.kind != "c" and dtype != np.float64 for dtype in unread):
        hint = f": {QUANTIZED}"
    require(not problems, f"{source}: the weights do not match config.json: {listed(problems)}{hint}")


def tensor_streams(weights: Weights, mp_num: int | None) -> Iterator[tuple[str, TensorStream]]:
    """Yield CodeGen's tensors by name, or GPT-J's (with separate q, k and v) if mp_num is None."""
    ours = {theirs: name for name, theirs in TOP.items()}
    for name, shape in tensor_shapes(weights.config).items():
        if name in ours:
            yield name, TensorStream(shape, weights.dtype(ours[name]), partial(_top_chunks, weights, ours[name]))
            continue
        layer, tensor = int(name.split(".")[2]), name.split(".", 3)[3]
        if tensor == "attn.qkv_proj.weight" and mp_num is None:
            for projection, separate in zip(PROJECTIONS, ("q_proj", "v_proj", "k_proj"), strict=True):
                chunks = partial(_projection_chunks, weights, projection, layer)
                stream = TensorStream((shape[0] // 3, shape[1]), weights.dtype(projection), chunks)
                yield name.replace("qkv_proj", separate), stream
        elif tensor == "attn.qkv_proj.weight" and mp_num is not None:
            yield (
                name,
                TensorStream(shape, weights.dtype("blocks.query"), partial(_fused_chunks, weights, layer, mp_num)),
            )
        else:
            leaf = next(leaf for leaf, theirs in LAYER.items() if theirs == tensor)
            yield name, TensorStream(shape, weights.dtype(leaf), partial(_layer_chunks, weights, leaf, layer))


def _whole(weights: Weights, name: str) -> Index:
    return tuple(slice(0, size) for size in shapes(weights.config)[name])


def _top_chunks(weights: Weights, name: str) -> Iterator[np.ndarray]:
    if name not in ("embedding", "head"):
        yield weights.read(name, _whole(weights, name))
        return
    V, D = weights.config.vocab_size, weights.config.n_embd
    rows = max(1, BLOCK_BYTES // (D * weights.dtype(name).itemsize))
    for start in range(0, V, rows):
        block = slice(start, min(start + rows, V))
        if name == "embedding":
            yield weights.read(name, (block, slice(0, D)))
        else:
            yield _transposed(weights.read(name, (slice(0, D), block)))


def _layer(weights: Weights, name: str, layer: int) -> np.ndarray:
    return weights.read(name, (slice(layer, layer + 1), *_whole(weights, name)[1:]))[0]


def _layer_chunks(weights: Weights, name: str, layer: int) -> Iterator[np.ndarray]:
    region = _layer(weights, name, layer)
    yield region if region.ndim == 1 else _transposed(region.reshape(-1, region.shape[-1]))


def _projection_chunks(weights: Weights, name: str, layer: int) -> Iterator[np.ndarray]:
    yield projection_rows(weights.config, name, _layer(weights, name, layer))


def _fused_chunks(weights: Weights, layer: int, mp_num: int) -> Iterator[np.ndarray]:
    yield fuse_projections(weights.config, mp_num, {name: _layer(weights, name, layer) for name in PROJECTIONS})


def _transposed(source: np.ndarray) -> np.ndarray:
    target = np.empty(source.shape[::-1], source.dtype)
    transpose_into(target, source)
    return target
