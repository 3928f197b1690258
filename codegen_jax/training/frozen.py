"""The model's weights below an adapter: their dtypes, their quantization, and how they are loaded.

Matrices are held in the compute dtype, in which every product reads them anyway, or quantized if `adapter.quantize` is
set; the embedding and the head are not quantized. Norms and biases are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from codegen_jax.errors import require
from codegen_jax.model.codegen import Params, abstract_params, param_axes
from codegen_jax.model.quantized import quantize, tile_of
from codegen_jax.sharding import shard_map, tree_shardings
from codegen_jax.training.resolve import ResolvedRun
from codegen_jax.weights.base import Weights, axes_by_name, dotted, load_params, local_bytes
from codegen_jax.weights.fingerprint import fingerprints


def with_sharding(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def frozen_axes(run: ResolvedRun) -> Params:
    """Logical axes of the parameters below an adapter; None without one."""
    return param_axes(run.model) if run.adapter.rank else None


def abstract_frozen(run: ResolvedRun) -> Params:
    """Shapes, dtypes and shardings of the parameters below an adapter; None without one.

    Raises:
        UserError: if the shards of quantized matrices would not consist of whole tiles.
    """
    if not run.adapter.rank:
        return None
    fsdp = run.mesh.shape["fsdp"]

    def held(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Any:
        kind, axes = _kind(run, dotted(path)), axes_by_name(run.model)[dotted(path)]
        if kind is None:
            return leaf
        tiles = run.model.n_embd // tile_of(axes, leaf.shape)
        require(
            tiles % fsdp == 0,
            f"mesh.fsdp: {fsdp} does not divide the {tiles} tiles of adapter.quantize along model.n_embd; use a "
            "divisor, and a larger mesh.data",
        )
        arrays = jax.eval_shape(partial(quantize, axes=axes, kind=kind), leaf)
        return jax.tree.map(lambda x: with_sharding(x, leaf.sharding), arrays)

    return jax.tree_util.tree_map_with_path(held, _dense(run))


def load_frozen(
    run: ResolvedRun, weights: Weights, progress: Callable[[int], object] = lambda nbytes: None
) -> tuple[Params, dict[str, int]]:
    """Load the parameters below an adapter, one at a time, so that only one is on the devices before quantization.

    Args:
        run: a run with an adapter.
        weights: the model.
        progress: called with the size of each region that was read; the total is `dense_bytes`.

    Returns:
        The parameters, and their fingerprints before quantization.
    """
    found: dict[str, int] = {}

    def load(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Any:
        tree: Any = leaf
        for key in reversed(path):
            tree = {key.key: tree}  # pyright: ignore[reportAttributeAccessIssue] - a nested dict has only DictKeys
        part = load_params(weights, tree, progress)
        found.update(fingerprints(part))
        (loaded,) = jax.tree.leaves(part)
        kind, axes = _kind(run, dotted(path)), axes_by_name(run.model)[dotted(path)]
        if kind is None:
            return loaded
        with jax.set_mesh(run.mesh):  # by shards, which consist of whole tiles
            return jax.jit(shard_map(partial(quantize, axes=axes, kind=kind), (axes,), axes))(loaded)

    return jax.tree_util.tree_map_with_path(load, _dense(run)), found


def dense_bytes(run: ResolvedRun) -> int:
    """Bytes that `load_frozen` reads for this process's devices."""
    return local_bytes(_dense(run))


def _dense(run: ResolvedRun) -> Params:
    """Shapes, dtypes and shardings before quantization."""

    def held(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        is_matrix = "embed" in axes_by_name(run.model)[dotted(path)]
        return jax.ShapeDtypeStruct(leaf.shape, run.model.dtype if is_matrix else leaf.dtype, sharding=sharding)

    shardings = tree_shardings(run.mesh, param_axes(run.model))
    return jax.tree_util.tree_map_with_path(held, abstract_params(run.model), shardings)


def _kind(run: ResolvedRun, name: str) -> str | None:
    """How a parameter is quantized, if it is."""
    is_matrix = name.startswith("blocks.") and "embed" in axes_by_name(run.model)[name]
    return run.adapter.quantize if is_matrix else None
