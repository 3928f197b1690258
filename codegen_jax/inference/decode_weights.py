"""A model's weights laid out for decoding: two large products per layer, contiguous output rows, optionally int8.

Decoding one sequence reads every weight once per token, so memory bandwidth limits its speed. A layer is two products:
`inner` combines query, key, value and fc_in, and `outer` combines attention_out and fc_out, which the block adds
anyway. Layers are separate arrays, because on CPUs a scan over stacked layers would copy each one before its use.

Along a mesh's tensor axis both matrices are split into G groups of whole heads, each with its part of the MLP. A device
owns the rows of `inner` and the columns of `outer` in its group, so a layer needs only one reduction.

Axes: D n_embd, V vocabulary, N rows of `inner` = 3 H K + F, M columns of `outer` = H K + F.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import require
from codegen_jax.inference.matrix import Matrix, Quantize, quantized
from codegen_jax.model.codegen import Params, abstract_params
from codegen_jax.progress import Progress
from codegen_jax.sharding import constrain, spec
from codegen_jax.weights.base import Weights, axes_by_name, fold_embedding_bias, shapes, stored_bytes

INNER = ("query", "key", "value", "fc_in")
OUTER = ("attention_out", "fc_out")


class Layer(NamedTuple):
    """One block: its two matrices, and its remaining float32 parameters keyed by name ("ln.scale")."""

    inner_ND: Matrix
    outer_DM: Matrix
    others: dict[str, Any]


class DecodeWeights(NamedTuple):
    """A whole network: its blocks, the head, and the remaining parameters keyed by name ("embedding")."""

    layers: tuple[Layer, ...]
    head_VD: Matrix
    others: dict[str, Any]


def load_weights(weights: Weights, config: CodeGenConfig, mesh: Mesh, quantize: Quantize) -> DecodeWeights:
    """Read a model onto a mesh one tensor at a time; peak memory is the model in its compute dtype plus one tensor."""
    weights = fold_embedding_bias(weights)
    progress = Progress("loading the model", stored_bytes(weights), "B", shown=jax.process_index() == 0)

    def read(name: str, layer: int | None) -> np.ndarray:
        bounds = [slice(0, size) for size in shapes(config)[name]]
        if layer is not None:
            bounds[0] = slice(layer, layer + 1)
        values = weights.read(name, tuple(bounds))
        progress.update(values.nbytes)
        return values if layer is None else values[0]

    def place(value: Any, axes: Any, dtype: Any) -> Any:
        with np.errstate(invalid="ignore"):  # if NaN is allowed, it is cast to int8; the row's scale is NaN, too
            stored = np.ascontiguousarray(value).astype(dtype)
        return jax.device_put(stored, NamedSharding(mesh, spec(*axes)))

    with progress:
        return _arrange(read, place, config, mesh.shape["tensor"], quantize, np)


def arrange_params(params: Params, config: CodeGenConfig, groups: int) -> DecodeWeights:
    """Like `load_weights`, but from parameters already on devices and inside jit; an embedding bias is folded in."""

    def place(value: jax.Array, axes: Any, dtype: Any) -> jax.Array:
        return constrain(value.astype(dtype), *axes)

    return _arrange(_reader(params), place, config, groups, None, jnp)


def abstract_weights(config: CodeGenConfig, mesh: Mesh, quantize: Quantize) -> DecodeWeights:
    """Shapes, dtypes and shardings of the weights, for ahead-of-time compilation."""
    arranged: list[DecodeWeights] = []

    def place(value: jax.Array, axes: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, dtype, sharding=NamedSharding(mesh, spec(*axes)))

    def trace(params: Params) -> tuple[()]:
        arranged.append(_arrange(_reader(params), place, config, mesh.shape["tensor"], quantize, jnp))
        return ()

    jax.eval_shape(trace, abstract_params(config))
    return arranged[0]


def _reader(params: Params) -> Callable[[str, int | None], jax.Array]:
    def read(name: str, layer: int | None) -> jax.Array:
        value = params
        for key in name.split("."):
            value = value[key]
        if name == "embedding" and "embedding_bias" in params:
            value += params["embedding_bias"]
        return value if layer is None else value[layer]

    return read


def _arrange(
    read: Callable[[str, int | None], Any],
    place: Callable[[Any, Any, Any], Any],
    config: CodeGenConfig,
    G: int,
    quantize: Quantize,
    xp: Any,
) -> DecodeWeights:
    D, H, K, axes = config.n_embd, config.n_head, config.head_dim, axes_by_name(config)
    require(
        H % G == 0 and config.vocab_size % G == 0,
        f"tensor: must divide the {H} heads and the vocabulary of {config.vocab_size}, got {G}",
    )

    def matrix(values: Any, axes: tuple[str, str]) -> Matrix:
        if quantize is None:
            return Matrix(place(values, axes, config.dtype))
        values, scale = quantized(values, xp)
        return Matrix(place(values, axes, np.int8), place(scale, axes[:1], np.float32))

    def layer(number: int) -> Layer:
        get = lambda name: read(f"blocks.{name}", number)
        inner = [get(name).reshape(D, G, -1) for name in INNER]
        inner_ND = xp.concatenate(inner, 2).reshape(D, -1).T
        outer = [get("attention_out").reshape(G, H * K // G, D), get("fc_out").reshape(G, -1, D)]
        outer_DM = xp.concatenate(outer, 1).reshape(-1, D).T
        others = {
            name: place(get(name), axes[f"blocks.{name}"][1:], np.float32)
            for name in (name.removeprefix("blocks.") for name in axes if name.startswith("blocks."))
            if name not in INNER + OUTER
        }
        return Layer(matrix(inner_ND, ("mlp", "embed")), matrix(outer_DM, ("embed", "mlp")), others)

    return DecodeWeights(
        tuple(layer(number) for number in range(config.n_layer)),
        matrix(read("head", None).T, ("vocab", "embed")),
        {
            name: place(read(name, None), axes[name], config.dtype if name == "embedding" else np.float32)
            for name in axes
            if not name.startswith("blocks.") and name not in ("head", "embedding_bias")
        },
    )
