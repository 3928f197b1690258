"""Parse names of TPU slices, and create device descriptions for absent slices."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from codegen_jax.chips import CHIPS, Chip
from codegen_jax.errors import UserError, require


@dataclass(frozen=True)
class Kind:
    """A generation of TPUs.

    Attributes:
        device_kind: JAX's name for the chip.
        cores: cores per chip, as counted in the names of slices.
        dimensions: dimensions of the network's torus, 2 or 3.
    """

    device_kind: str
    cores: int
    dimensions: int


KINDS = {
    "v4": Kind("TPU v4", cores=2, dimensions=3),
    "v5p": Kind("TPU v5", cores=2, dimensions=3),
    "v5e": Kind("TPU v5 lite", cores=1, dimensions=2),
    "v6e": Kind("TPU v6", cores=1, dimensions=2),
}
# other names for a kind, after an optional "tpu-": gcloud's, and GKE's node selectors, which require a shape
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
GKE = {"v4-podslice": "v4", "v5p-slice": "v5p", "v5-lite-podslice": "v5e", "v6e-slice": "v6e"}


@dataclass(frozen=True)
class Slice:
    """Chips connected by a dedicated network.

    Attributes:
        name: the slice's name, such as v4-512, which has 256 chips, since v4 and v5p count two cores per chip.
        kind: a key of `KINDS`.
        shape: number of chips along each dimension of the network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[KINDS[self.kind].device_kind]

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Whether each axis is a ring: on v4 and v5p if all sizes are multiples of 4; on v5e and v6e at size 16."""
        if len(self.shape) == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(size == 16 for size in self.shape)


def parse_slice(name: str) -> Slice:
    """Parse the name of a slice, such as v4-512, v5litepod-16, v5e-4x4 or tpu-v5-lite-podslice:4x4.

    As in Google's names, a number counts cores for v4 and v5p and chips for the others. A shape counts chips.

    Raises:
        UserError: if the kind of chip is unknown, or has no slice of this size.
    """
    match = re.fullmatch(r"(?:tpu-)?(.+)[-_:](\d+|\d+(?:x\d+)+)", name.lower())
    kind_name, size = match.groups() if match else ("", "")
    kind_name = (GKE if "x" in size else {}).get(kind_name, ALIASES.get(kind_name, kind_name))
    if kind_name not in KINDS:
        raise UserError(
            f"topology: must be KIND-NUMBER or KIND-SHAPE, such as v4-512 or v5e-4x4, got {name!r}; "
            f"kinds are {', '.join([*KINDS, *ALIASES])}, and with a shape also {', '.join(GKE)}"
        )
    kind = KINDS[kind_name]
    shapes = {kind.cores * math.prod(shape): shape for shape in _shapes(kind.dimensions)}
    wanted = [int(part) for part in size.split("x")]
    number = kind.cores * math.prod(wanted) if "x" in size else wanted[0]
    is_shape = "x" not in size or _sides(wanted) == _sides(shapes.get(number, ()))
    nearest = {max([n for n in shapes if n <= number], default=min(shapes))}
    nearest |= {min([n for n in shapes if n >= number], default=max(shapes))}
    names = " or ".join(f"{kind_name}-{n} ({'x'.join(map(str, shapes[n]))})" for n in sorted(nearest))
    require(number in shapes and is_shape, f"topology: {name} does not exist; use {names}")
    return Slice(f"{kind_name}-{number}", kind_name, shapes[number])


def _sides(shape: Sequence[int]) -> list[int]:
    """A shape in normal form, without sizes of 1: 2x2 and 2x2x1 are equal."""
    return sorted(size for size in shape if size > 1)


def _shapes(dimensions: int) -> list[tuple[int, ...]]:
    """The shapes of all slices that exist."""
    if dimensions == 2:
        return [(1, 1), *(_near_cube(2**i, 2) for i in range(2, 9))]
    return [(2, 2, 1), *(_near_cube(2**i, 3) for i in range(3, 12))]


def _near_cube(chips: int, dimensions: int) -> tuple[int, ...]:
    """Factor `chips` into powers of two that are as equal as possible, in ascending order: 256 is 4 x 8 x 8."""
    exponent, extra = divmod(int(math.log2(chips)), dimensions)
    return tuple(2 ** (exponent + (axis >= dimensions - extra)) for axis in range(dimensions))


def slice_devices(tpu: Slice, slices: int = 1) -> list[Any]:
    """Device descriptions of absent slices, for meshes and ahead-of-time compilation.

    Raises:
        UserError: if libtpu, which contains the compiler, is not installed.
    """
    require(slices > 0, f"slices: must be positive, got {slices}")
    jax.config.update("jax_platforms", "cpu")  # leave any TPU on this machine alone; only descriptions are needed
    jax.config.update("jax_enable_compilation_cache", False)  # JAX can write these programs but not read them back
    # keep libtpu from looking for a TPU metadata server and from locking the machine's TPU
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": tpu.name,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    grid, wrap, hosts = ((*x, *rest)[:3] for x, rest in ((tpu.shape, (1,)), (tpu.wrap, (False,)), ((2, 2), (1,))))
    try:
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{tpu.kind}:{'x'.join(map(str, tpu.shape))}",
            chip_config_name="megacore" if KINDS[tpu.kind].cores == 2 else "default",
            chips_per_host_bounds=tuple(min(a, b) for a, b in zip(hosts, grid)),
            num_slices=slices,
            wrap=wrap,
        )
    except (ImportError, RuntimeError) as error:
        raise UserError(f"the TPU compiler is unavailable ({error}); pip install 'codegen_jax[plan]'") from error
    return list(topology.devices)
