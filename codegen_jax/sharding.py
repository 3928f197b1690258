"""The mesh of devices, and which axis of an array lies along which axis of the mesh.

Arrays name their axes logically ("embed", "heads"); `RULES` maps these names to the mesh's axes and is the only place
that knows both. `data` holds replicas, `fsdp` shards parameters and batch, `tensor` shards heads, MLP and vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.config import MeshConfig, RunConfig
from codegen_jax.errors import require

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
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
    grid = mesh_utils.create_device_mesh(tuple(shape), devices)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def check_fit(config: RunConfig, mesh: Mesh) -> None:
    """Check that the mesh divides what it shards.

    Raises:
        UserError: naming the axis and the field.
    """
    model, axes = config.model, dict(mesh.shape)
    for axis, name, size in (
        ("fsdp", "model.n_embd", model.n_embd),
        ("tensor", "model.n_head", model.n_head),
        ("tensor", "model.vocab_size", model.vocab_size),
    ):
        require(size % axes[axis] == 0, f"mesh.{axis}: {axes[axis]} does not divide {name} = {size}")
    rows = config.training.batch_size // config.training.gradient_accumulation_steps
    shards = axes["data"] * axes["fsdp"]
    require(
        rows % shards == 0,
        f"training.batch_size: a micro-batch of {rows} rows does not divide over mesh.data x mesh.fsdp = {shards}",
    )


def spec(*axes: str | None) -> P:
    """The partition of an array whose axes have these logical names."""
    return P(*(RULES[axis] for axis in axes))


def tree_shardings(mesh: Mesh, axes: Any) -> Any:
    """Shardings of a tree of arrays, from the tree of their logical axes (tuples of names)."""
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(*a)), axes, is_leaf=lambda a: isinstance(a, tuple))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an intermediate's partition inside jit, under the mesh of `jax.set_mesh`; without a mesh, do nothing.

    Inside `per_device` only the axes that are left to XLA count.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, auto_spec(*axes))


def manual_axes() -> tuple[str, ...]:
    return jax.sharding.get_abstract_mesh().manual_axes


def auto_spec(*axes: str | None) -> P:
    manual = manual_axes()
    flat = lambda rule: rule if isinstance(rule, tuple) else (rule,)
    return P(*(tuple(a for a in flat(r) if a and a not in manual) or None for r in spec(*axes)))


def gather(x, axes):
    if "fsdp" not in manual_axes() or "embed" not in axes:
        return x
    axis = axes.index("embed") - len(axes)
    first = jnp.moveaxis(x, axis, 0)
    return jnp.moveaxis(jax.lax.all_gather(first, "fsdp", axis=0, tiled=True), 0, axis)


def device_kind() -> str:
    """What the computation that is being traced will run on, such as "TPU v4", "NVIDIA H200" or "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def shard_map(f: Callable[..., jax.Array], in_axes: Any, out_axes: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """f on each device's part of arrays with these logical axes; without a mesh, f itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f
    is_axes = lambda a: isinstance(a, tuple) and not isinstance(a[0], tuple)
    specs = jax.tree.map(lambda a: auto_spec(*a), in_axes, is_leaf=is_axes)
    return jax.shard_map(f, in_specs=specs, out_specs=auto_spec(*out_axes), axis_names=set(mesh.auto_axes), check_vma=False)
