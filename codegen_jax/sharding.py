"""The device mesh, and the mapping from logical array axes to mesh axes.

Arrays have logical axes ("embed", "heads"). Only `RULES` maps them to mesh axes: `data` and `fsdp` shard the
batch, `fsdp` also shards parameters, and `tensor` shards heads, MLP and vocabulary.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.chips import LANES
from codegen_jax.config import CodeGenConfig, MeshConfig, TrainingConfig
from codegen_jax.errors import require

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes that shard the rows of a batch

LARGE_MATRIX = 2**29  # bytes: the tables of 16B are larger, those of 6B are not

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ROWS,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "head_dim": None,
    "rank": None,
    "projection": None,  # query, key and value
    "tokens": None,
    "norm": None,  # LayerNorms, biases and adapters along the width: small, so cheaper to replicate than to gather
    None: None,
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices (default: all) in a mesh with axes data, fsdp and tensor.

    Raises:
        UserError: if the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config.data, config.fsdp, config.tensor]
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -int(np.prod(shape)))
    require(
        int(np.prod(shape)) == len(devices),
        f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not match {len(devices)} "
        f"device(s); the product must be {len(devices)} (one axis may be -1)",
    )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # uses whole dimensions of a TPU's torus if possible, otherwise splits them
        grid = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
    else:  # only the data axis crosses the slow network between slices
        require(
            shape[0] % slices == 0, f"mesh.data: must be a multiple of the number of slices, {slices}, got {shape[0]}"
        )
        per_slice = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(per_slice, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_fit(mesh: Mesh, model: CodeGenConfig, training: TrainingConfig) -> None:
    """Check that the mesh axes divide the dimensions they shard.

    Raises:
        UserError: if one does not; the message names the axis and the field.
    """
    axes = dict(mesh.shape)
    for name, field in (("embed", "n_embd"), ("heads", "n_head"), ("vocab", "vocab_size")):
        for axis in _mesh_axes(name):
            size = getattr(model, field)
            require(size % axes[axis] == 0, f"mesh.{axis}: {axes[axis]} does not divide model.{field} = {size}")
    rows = training.batch_size // training.gradient_accumulation_steps
    shards = axes["data"] * axes["fsdp"]
    require(
        rows % shards == 0,
        f"training.batch_size: a micro-batch of {rows} rows must be divisible by mesh.data x mesh.fsdp = {shards}",
    )


def spec(*axes: str | None, over: Collection[str] = AXES) -> P:
    """The partition spec of an array with these logical axes, restricted to the mesh axes in `over`."""
    selected = [tuple(a for a in _mesh_axes(name) if a in over) for name in axes]
    return P(*(None if not names else names[0] if len(names) == 1 else names for names in selected))


def _mesh_axes(name: str | None) -> tuple[str, ...]:
    rule = RULES[name]
    return rule if isinstance(rule, tuple) else (rule,) if rule else ()


def tree_specs(axes: Any, over: Collection[str] = AXES) -> Any:
    """Partition specs for a tree of logical axes (tuples of names)."""
    is_axes = lambda node: isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)
    return jax.tree.map(lambda names: spec(*names, over=over), axes, is_leaf=is_axes)


def tree_shardings(mesh: Mesh, axes: Any) -> Any:
    """Shardings for a tree of logical axes."""
    return jax.tree.map(lambda partition: NamedSharding(mesh, partition), tree_specs(axes))


def manual_axes() -> set[str]:
    """The mesh axes that are manual (inside `shard_map`) in the code being traced."""
    return set(jax.sharding.get_abstract_mesh().manual_axes)


def shared_axes() -> set[str]:
    """The manual axes with more than one device. XLA on CPU copies the operand of a collective over a single one."""
    return {axis for axis in manual_axes() if jax.sharding.get_abstract_mesh().shape[axis] > 1}


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an intermediate's sharding inside jit under `jax.set_mesh`; without a mesh, do nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes, over=set(AXES) - manual_axes()))


def shard_map(f: Callable[..., Any], in_axes: Any, out_axes: Any, over: Collection[str] = AXES) -> Callable[..., Any]:
    """Map f over the shards of arrays with these logical axes; without a mesh, return f itself.

    Mesh axes not in `over` are left to XLA; axes that are already manual stay manual.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return f
    over = set(over) - manual_axes()
    in_specs, out_specs = tree_specs(in_axes, over), tree_specs(out_axes, over)
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=over, check_vma=False)


def gather(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """All-gather a weight along fsdp inside a `shard_map` over the rows; its gradient is reduce-scattered.

    `axes` are its logical axes; the weight may lack leading ones.
    """
    axes = axes[len(axes) - w.ndim :]
    sharded = [index for index, name in enumerate(axes) if "fsdp" in _mesh_axes(name)]
    if "fsdp" not in shared_axes() or not sharded:
        return w
    is_padded = "head_dim" in axes and w.shape[axes.index("head_dim")] % LANES != 0
    gather_fsdp = lambda w: _all_gather(w, sharded[0], is_padded)
    return shard_map(gather_fsdp, (axes,), axes)(w)  # tensor must be manual too, or XLA gathers along it first


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _all_gather(w: jax.Array, axis: int, is_padded: bool) -> jax.Array:
    """Gather a weight; if XLA on TPU would pad its heads in memory (of 64 or 80 channels), with its other axes flat."""
    if not is_padded:
        return jax.lax.all_gather(w, "fsdp", axis=axis, tiled=True)
    before, after = w.shape[:axis], w.shape[axis + 1 :]
    flat = w.reshape([math.prod(axes) for axes in (before, w.shape[axis : axis + 1], after) if axes])
    whole = jax.lax.all_gather(flat, "fsdp", axis=min(axis, 1), tiled=True)
    return whole.reshape(*before, -1, *after)


def _reduce_scatter(axis: int, is_padded: bool, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """The transpose of `_all_gather`.

    XLA on TPU makes an all-reduce of it unless the axis is the slowest in memory. A third axis keeps it there; matrices
    need a constraint. Beyond `LARGE_MATRIX`, XLA sends a matrix piecewise, which costs more, but not with a third axis.
    """
    first = jnp.moveaxis(gradient, axis, 0)
    flat = first.reshape(len(first), -1) if is_padded else first
    if flat.nbytes > LARGE_MATRIX and flat.shape[-1] % 8 == 0:
        flat = flat.reshape(len(flat), 8, -1)
    elif flat.ndim == 2:
        flat = with_layout_constraint(flat, Layout((0, 1)))
    shard = jax.lax.psum_scatter(flat, "fsdp", tiled=True)
    return (jnp.moveaxis(shard.reshape(-1, *first.shape[1:]), 0, axis),)


_all_gather.defvjp(lambda w, *static: (_all_gather(w, *static), None), _reduce_scatter)


def sum_over_rows(x: Any, axes: tuple[str, ...] = ()) -> Any:
    """Sum over devices that shard the rows, except along axes that shard x: `gather`'s gradient is already summed."""
    over = [axis for axis in ROWS if axis in shared_axes() and all(axis not in _mesh_axes(name) for name in axes)]
    return jax.lax.psum(x, over) if over else x


def device_kind() -> str:
    """The device kind that the code being traced will run on, such as "TPU v4", "NVIDIA H200" or "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind
