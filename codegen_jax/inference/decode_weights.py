"""A model's weights as decoding wants them: few large products a layer, each output's row contiguous, maybe int8.

Decoding one sequence reads every weight once a token, so its speed is that of memory. A layer is two products: `inner`
holds query, key, value and fc_in, `outer` holds attention_out and fc_out, whose sum the block takes anyway. Layers are
separate arrays: a scan over stacked ones would copy each before its use on CPUs.

Along a mesh's tensor axis both are cut into G groups of whole heads, each with its part of the MLP: a device owns the
rows of `inner` and the columns of `outer` of its group, so a layer needs one reduction.

Axes: D n_embd, V vocabulary, N rows of `inner` = 3 H K + F, M columns of `outer` = H K + F.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from codegen_jax.config import CodeGenConfig
from codegen_jax.errors import require
from codegen_jax.model.codegen import Params, abstract_params
from codegen_jax.sharding import constrain, device_kind, spec
from codegen_jax.weights.base import Weights, fold_embedding_bias, shapes

Quantize = Literal["int8"] | None


class Matrix(NamedTuple):
    """A weight [out, in]: in the compute dtype, or int8 with a float32 scale for each output."""

    values: Any
    scale: Any = None


class Layer(NamedTuple):
    """One block. LayerNorm and biases are float32."""

    ln_scale_D: Any
    ln_bias_D: Any
    inner_ND: Matrix
    fc_in_bias_F: Any
    outer_DM: Matrix
    fc_out_bias_D: Any


class DecodeWeights(NamedTuple):
    """All of a network."""

    embedding_VD: Any
    layers: tuple[Layer, ...]
    ln_scale_D: Any
    ln_bias_D: Any
    head_VD: Matrix
    head_bias_V: Any


AXES = DecodeWeights(
    ("vocab", "embed"),
    (
        Layer(
            (None,), (None,), Matrix(("mlp", "embed"), ("mlp",)), ("mlp",), Matrix(("embed", "mlp"), (None,)), (None,)
        ),
    ),
    (None,),
    (None,),
    Matrix(("vocab", "embed"), ("vocab",)),
    ("vocab",),
)


def load_weights(weights: Weights, config: CodeGenConfig, mesh: Mesh, quantize: Quantize) -> DecodeWeights:
    """Read a model onto a mesh, a tensor at a time: the peak is the model in its run dtype and one tensor."""
    weights = fold_embedding_bias(weights)

    def read(name: str, layer: int | None) -> np.ndarray:
        bounds = [slice(0, size) for size in shapes(config)[name]]
        if layer is None:
            return weights.read(name, tuple(bounds))
        return weights.read(name, (slice(layer, layer + 1), *bounds[1:]))[0]

    def place(value: Any, axes: Any, dtype: Any) -> Any:
        return jax.device_put(np.ascontiguousarray(value).astype(dtype), NamedSharding(mesh, spec(*axes)))

    return _arrange(read, place, config, mesh.shape["tensor"], quantize, np)


def arrange_params(params: Params, config: CodeGenConfig, groups: int) -> DecodeWeights:
    """The same from parameters on devices, inside jit; an embedding bias is folded in."""

    def read(name: str, layer: int | None) -> jax.Array:
        value = params
        for key in name.split("."):
            value = value[key]
        if name == "embedding" and "embedding_bias" in params:
            value += params["embedding_bias"]
        return value if layer is None else value[layer]

    def place(value: jax.Array, axes: Any, dtype: Any) -> jax.Array:
        return constrain(value.astype(dtype), *axes)

    return _arrange(read, place, config, groups, None, jnp)


def abstract_weights(config: CodeGenConfig, mesh: Mesh, quantize: Quantize) -> DecodeWeights:
    """Shapes, dtypes and shardings of the weights, for compiling ahead of time."""
    groups = mesh.shape["tensor"]
    plain = jax.eval_shape(partial(arrange_params, config=config, groups=groups), abstract_params(config))
    axes = AXES._replace(layers=AXES.layers * config.n_layer)

    def place(leaf: Any, names: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec(*names)))

    def matrix(leaf: Any, names: Any) -> Any:
        if not isinstance(leaf, Matrix):
            return place(leaf, names)
        values, scale = leaf.values, None
        if quantize:
            scale = place(jax.ShapeDtypeStruct(values.shape[:1], np.float32), names.scale)
            values = jax.ShapeDtypeStruct(values.shape, np.int8)
        return Matrix(place(values, names.values), scale)

    return jax.tree.map(matrix, plain, axes, is_leaf=lambda node: isinstance(node, Matrix))


def _arrange(
    read: Callable[[str, int | None], Any],
    place: Callable[..., Any],
    config: CodeGenConfig,
    G: int,
    quantize: Any,
    xp: Any,
) -> DecodeWeights:
    D, H, K, dtype = config.n_embd, config.n_head, config.head_dim, config.dtype
    require(H % G == 0 and config.vocab_size % G == 0, f"tensor: {G} does not divide the {H} heads and the vocabulary")

    def matrix(values: Any, axes: Matrix) -> Matrix:
        if not quantize:
            return Matrix(place(values, axes.values, dtype))
        values = np.asarray(values, np.float32)
        scale = np.maximum(np.abs(values).max(1), 1e-12) / 127
        return Matrix(
            place(np.rint(values / scale[:, None]), axes.values, np.int8), place(scale, axes.scale, np.float32)
        )

    def layer(number: int) -> Layer:
        get = lambda name: read(f"blocks.{name}", number)
        vector = lambda name, axes: place(get(name), axes, np.float32)
        inner = [get(name).reshape(D, G, -1) for name in ("query", "key", "value", "fc_in")]
        inner_ND = xp.concatenate(inner, 2).reshape(D, -1).T
        outer = [get("attention_out").reshape(G, H * K // G, D), get("fc_out").reshape(G, -1, D)]
        outer_DM = xp.concatenate(outer, 1).reshape(-1, D).T
        (axes,) = AXES.layers
        return Layer(
            vector("ln.scale", axes.ln_scale_D),
            vector("ln.bias", axes.ln_bias_D),
            matrix(inner_ND, axes.inner_ND),
            vector("fc_in_bias", axes.fc_in_bias_F),
            matrix(outer_DM, axes.outer_DM),
            vector("fc_out_bias", axes.fc_out_bias_D),
        )

    return DecodeWeights(
        place(read("embedding", None), AXES.embedding_VD, dtype),
        tuple(layer(number) for number in range(config.n_layer)),
        place(read("ln_f.scale", None), AXES.ln_scale_D, np.float32),
        place(read("ln_f.bias", None), AXES.ln_bias_D, np.float32),
        matrix(read("head", None).T, AXES.head_VD),
        place(read("head_bias", None), AXES.head_bias_V, np.float32),
    )


def linear(x: jax.Array, matrix: Matrix) -> jax.Array:
    """x [..., in] times a matrix [out, in], float32 [..., out].

    On a CPU XLA has fast kernels for products of two int8 and of two bfloat16 matrices (AMX, VNNI), but none for mixed
    types. So a row of activations becomes two int8 rows, its value and 254 times what rounding left, which keeps 15
    bits of it.
    """
    rows = x.reshape(-1, x.shape[-1])
    if matrix.scale is None:
        product = _product(rows, matrix.values, jnp.float32)
    elif device_kind() == "cpu":
        rows = rows.astype(jnp.float32)
        unit = jnp.maximum(jnp.abs(rows).max(1, keepdims=True), 1e-30) / 127
        coarse = jnp.round(rows / unit)
        fine = jnp.round((rows / unit - coarse) * 254)
        both = _product(jnp.concatenate([coarse, fine]).astype(jnp.int8), matrix.values, jnp.int32)
        product = (both[: len(rows)] + both[len(rows) :] / 254) * unit * matrix.scale
    else:
        product = _product(rows, matrix.values.astype(rows.dtype), jnp.float32) * matrix.scale
    return product.reshape(*x.shape[:-1], -1)


def few_rows(dtype: Any) -> int:
    """How many rows a product has at least: fewer are padded, which costs nothing where memory is what is waited for.

    On a TPU a single row would be multiplied by the vector unit, at a quarter of the speed. On a CPU a single row of
    bfloat16 is slow, while float32 has a kernel for it, and int8 comes in two rows.
    """
    return {"cpu": 4 if dtype == jnp.bfloat16 else 1, "TPU": 8}.get(device_kind()[:3], 1)


def _product(rows: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """On a CPU the kernels for two rows or more repack their second matrix, so the rows are the second there: 16 of
    float32 then read weights at 20 GB/s instead of 10. The barrier keeps XLA from swapping them back."""
    padded = jnp.pad(rows, ((0, max(0, few_rows(rows.dtype) - len(rows))), (0, 0)))
    multiply = lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    if device_kind() == "cpu" and len(padded) > 1:
        product = jax.lax.optimization_barrier(multiply(values, padded)).T
    else:
        product = multiply(padded, values)
    return product[: len(rows)]
