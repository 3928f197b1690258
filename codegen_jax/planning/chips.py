"""TPU chips and slices: what a chip can do, and the devices of a slice that is not there."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from codegen_jax.errors import UserError, require


@dataclass(frozen=True)
class Chip:
    """One TPU chip (Google's system architecture pages; link rates from the scaling book's table of TPUs).

    Attributes:
        peak_flops: dense bfloat16 FLOP/s.
        hbm_bytes: memory that the compiler gives to a program (from its own messages, libtpu 0.0.52).
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s of one inter-chip link in one direction.
        clock: cycles/s, the unit of the compiler's estimates.
        cores: how many a slice's name counts for one chip.
        dimensions: of the network: 3 is a torus of rows, columns and planes, 2 one of rows and columns.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float
    cores: int
    dimensions: int


DCN_BANDWIDTH = 6.25e9  # bytes/s of one chip between slices (scaling book: 25 GB/s a host of four)
GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, int(30.75 * GIB), 1228e9, 45e9, 1.05e9, cores=2, dimensions=3),
    "v5p": Chip(459e12, int(95.73 * GIB), 2765e9, 90e9, 1.75e9, cores=2, dimensions=3),
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, 45e9, 1.5e9, cores=1, dimensions=2),
    "v6e": Chip(918e12, int(31.24 * GIB), 1640e9, 90e9, 1.75e9, cores=1, dimensions=2),
}


@dataclass(frozen=True)
class Slice:
    """Chips joined by their own network.

    Attributes:
        name: such as v4-512, which is 256 chips: v4 and v5p count two cores a chip.
        kind: a key of `CHIPS`.
        shape: chips along each dimension of the network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Whether each dimension is a ring: v4 and v5p in multiples of a cube of 4, v5e and v6e at 16."""
        if self.chip.dimensions == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(size == 16 for size in self.shape)


def parse_slice(name: str) -> Slice:
    """The slice of a name such as v4-512, v5e-256 or v6e-64.

    Raises:
        UserError: if there is no such chip, or the number is not one of its sizes.
    """
    match = re.fullmatch(r"(v\w+)-(\d+)", name)
    kinds = ", ".join(CHIPS)
    if not match or match[1] not in CHIPS:
        raise UserError(f"--topology: {name!r} is not KIND-NUMBER with a kind of {kinds}, such as v4-512")
    kind, chip = match[1], CHIPS[match[1]]
    chips, rest = divmod(int(match[2]), chip.cores)
    largest, smallest = (4096 // chip.cores, 4) if chip.dimensions == 3 else (256, 1)
    valid = [chip.cores * 2**i for i in range(13) if smallest <= 2**i <= largest]
    require(
        not rest and chips * chip.cores in valid,
        f"--topology: {name} is none of {kind}-{{{', '.join(map(str, valid))}}}",
    )
    return Slice(name, kind, (2, 2, 1) if chip.dimensions == 3 and chips == 4 else _near_cube(chips, chip.dimensions))


def _near_cube(chips: int, dimensions: int) -> tuple[int, ...]:
    """Powers of two that multiply to `chips`, as equal as can be, ascending: 256 is 4 x 8 x 8."""
    each, more = divmod(int(math.log2(chips)), dimensions)
    return tuple(2 ** (each + (place >= dimensions - more)) for place in range(dimensions))


def slice_devices(tpu: Slice, slices: int = 1) -> list[Any]:
    """Devices of absent slices, for meshes and ahead-of-time compilation.

    Raises:
        UserError: if libtpu, which holds the compiler, is not installed.
    """
    # libtpu looks for a TPU's metadata server and takes a lock on the machine's TPU, unless told otherwise
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
            chip_config_name="megacore" if tpu.chip.cores == 2 else "default",
            chips_per_host_bounds=tuple(min(a, b) for a, b in zip(hosts, grid)),
            num_slices=slices,
            wrap=wrap,
        )
    except (ImportError, RuntimeError) as error:
        raise UserError(f"the TPU compiler is not here ({error}); pip install 'codegen_jax[plan]'") from error
    return list(topology.devices)
