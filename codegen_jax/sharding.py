"""The mesh of devices, and which axis of an array lies along which axis of the mesh.

Arrays name their axes logically ("embed", "heads"); `RULES` maps these names to the mesh's axes and is the only place
that knows both. `data` holds replicas, `fsdp` shards parameters and batch, `tensor` shards heads, MLP and vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.config import CodeGenConfig, MeshConfig, TrainingConfig
from codegen_jax.errors import require

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # share out the rows of a batch

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ROWS,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "head_dim": None,
    "norm": None,  # LayerNorms and biases along the width: a few KiB, cheaper whole than gathered
    None: None,
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices (all of them unless given) in a mesh with axes data, fsdp and tensor.

    Raises:
        UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config.data, config.fsdp, config.tensor]
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -int(np.prod(shape)))
    require(
        int(np.prod(shape)) == len(devices),
        f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit {len(devices)} "
        f"device(s); the product must be {len(devices)} (one axis may be -1)",
    )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # whole sides of a TPU's torus where that is possible, parts of them where not
        grid = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
    else:  # replicas of the parameters lie on either side of the slow network between slices
        require(shape[0] % slices == 0, f"mesh.data: {shape[0]} is not a multiple of the {slices} slices")
        within = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_fit(mesh: Mesh, model: CodeGenConfig, training: TrainingConfig) -> None:
    """Check that the mesh divides what it shards.

    Raises:
        UserError: naming the axis and the field.
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
        f"training.batch_size: a micro-batch of {rows} rows does not divide over mesh.data x mesh.fsdp = {shards}",
    )


def spec(*axes: str | None, over: Collection[str] = AXES) -> P:
    """The partition, over these axes of the mesh, of an array whose axes have these logical names."""
    kept = [tuple(a for a in _mesh_axes(name) if a in over) for name in axes]
    return P(*(None if not names else names[0] if len(names) == 1 else names for names in kept))


def _mesh_axes(name: str | None) -> tuple[str, ...]:
    rule = RULES[name]
    return rule if isinstance(rule, tuple) else (rule,) if rule else ()


def tree_specs(axes: Any, over: Collection[str] = AXES) -> Any:
    """Partitions of a tree of arrays, from the tree of their logical axes (tuples of names)."""
    is_axes = lambda node: isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)
    return jax.tree.map(lambda names: spec(*names, over=over), axes, is_leaf=is_axes)


def tree_shardings(mesh: Mesh, axes: Any) -> Any:
    """Shardings of a tree of arrays, from the tree of their logical axes."""
    return jax.tree.map(lambda partition: NamedSharding(mesh, partition), tree_specs(axes))


def manual_axes() -> set[str]:
    """The mesh's axes along which the code that is being traced sees its own device's part."""
    return set(jax.sharding.get_abstract_mesh().manual_axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an intermediate's partition inside jit, under the mesh of `jax.set_mesh`; without a mesh, do nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes, over=set(AXES) - manual_axes()))


def shard_map(f: Callable[..., Any], in_axes: Any, out_axes: Any, over: Collection[str] = AXES) -> Callable[..., Any]:
    """f on each device's part of arrays with these logical axes; without a mesh, f itself.

    Axes of the mesh that are not in `over` are left to XLA; those that are manual already stay so.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return f
    over = set(over) - manual_axes()
    in_specs, out_specs = tree_specs(in_axes, over), tree_specs(out_axes, over)
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=over, check_vma=False)


def gather(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """A weight made whole along fsdp, inside a `shard_map` over the rows; its gradient is reduce-scattered.

    `axes` are its logical axes, of which it may lack leading ones.
    """
    axes = axes[len(axes) - w.ndim :]
    sharded = [place for place, name in enumerate(axes) if "fsdp" in _mesh_axes(name)]
    if "fsdp" not in manual_axes() or not sharded:
        return w
    whole = lambda w: _all_gather(w, sharded[0], "vocab" in axes)
    return shard_map(whole, (axes,), axes)(w)  # along tensor, too, or XLA gathers along it first


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _all_gather(w: jax.Array, axis: int, cut: bool) -> jax.Array:
    return jax.lax.all_gather(w, "fsdp", axis=axis, tiled=True)


def _reduce_scatter(axis: int, cut: bool, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """The transpose of `_all_gather`, in a form that XLA on TPU does not turn into an all-reduce.

    It does so where the axis is not the first, and for tables of 51,200 columns unless these are cut in pieces.
    """
    first = jnp.moveaxis(gradient, axis, 0)
    pieces = first.reshape(len(first), 8, -1) if cut and first.shape[1] % 8 == 0 else first
    part = jax.lax.psum_scatter(pieces, "fsdp", tiled=True)
    return (jnp.moveaxis(part.reshape(-1, *first.shape[1:]), 0, axis),)


_all_gather.defvjp(lambda w, axis, cut: (_all_gather(w, axis, cut), None), _reduce_scatter)


def sum_over_rows(x: Any, axes: tuple[str, ...] = ()) -> Any:
    """A sum over the devices that share out the rows; along fsdp, `gather` summed what lies along it already."""
    over = [axis for axis in ROWS if axis in manual_axes() and all(axis not in _mesh_axes(name) for name in axes)]
    return jax.lax.psum(x, over) if over else x


def device_kind() -> str:
    """What the code that is being traced will run on, such as "TPU v4", "NVIDIA H200" or "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind
