"""Collectives on the links of a slice: what each member receives, and how long that takes."""

import math
import re
from collections.abc import Sequence

import numpy as np

from codegen_jax.planning.hlo import COLLECTIVES, Instruction, Module, nbytes
from codegen_jax.planning.slices import Slice

DCN_BANDWIDTH = 6.25e9  # bytes/s of one chip between slices (scaling book: 25 GB/s per host of four)


class Links:
    """A slice's own network: durations of collectives on it.

    Attributes:
        coordinates: place of each partition of the program in the torus, its slice last.
    """

    def __init__(self, tpu: Slice, coordinates: Sequence[tuple[int, ...]]):
        self.tpu, self.coordinates = tpu, coordinates

    def seconds(self, group: Sequence[int], received: int) -> float:
        """Time in which each member of a group receives so many bytes.

        A group that spans k rings uses 2k links at once, one each way along each ring; where it spans a part of a ring,
        or a line, only the one.
        """
        spanned = [len({self.coordinates[member][axis] for member in group}) for axis in range(4)]
        if spanned[3] > 1:
            return received / DCN_BANDWIDTH
        sides, wrap = (*self.tpu.shape, 1), (*self.tpu.wrap, False)
        links = sum(2 if wrap[axis] and spanned[axis] == sides[axis] else 1 for axis in range(3) if spanned[axis] > 1)
        return received / (links * self.tpu.chip.link_bandwidth) if links else 0.0

    def from_other_slices(self, size: int) -> tuple[int, float]:
        """Bytes and time of one chip's share in an all-reduce of so many bytes over the slices."""
        slices = len({place[3] for place in self.coordinates})
        received = 2 * size * (slices - 1) // slices
        return received, received / DCN_BANDWIDTH


def collective_of(module: Module, i: Instruction) -> Instruction | None:
    """The collective that an instruction is or, for a fusion or an asynchronous wrapper, contains."""
    if i.opcode.removesuffix("-start") in COLLECTIVES:
        return i
    called = i.called("calls") if i.opcode in ("fusion", "async-start") else None
    inside = module.computations[called].values() if called else ()
    return next((inner for inner in inside if inner.opcode in COLLECTIVES), None)


def traffic(i: Instruction) -> tuple[int, list[int]]:
    """Bytes that each member of a collective's first group receives on the best schedule, and that group."""
    sizes = [nbytes(array) for array in i.arrays]
    kind = i.opcode.removesuffix("-start")
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", i.attributes)
        return sizes[0], [int(n) for n in pairs.groups()] if pairs else []
    group = first_group(i.attributes)
    n = len(group)
    # a start's result is (operands, results, ...)
    size = max(sizes) if i.opcode.endswith("-start") else sum(sizes)
    if kind == "reduce-scatter":
        size *= n
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1), group


def first_group(attributes: str) -> list[int]:
    """Members of the first of the replica groups, in any of the forms in which XLA writes them.

    {{0,1},{2,3}}: listed. [2,4]<=[4,2]T(1,0): rows of the numbers from 0, shaped, transposed and shaped again.
    mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: along axes of such an array; without device_ids of the numbers.
    """
    text = attributes[attributes.index("replica_groups=") + len("replica_groups=") :]
    if listed := re.match(r"\{\{([\d,]*)\}", text):
        return _numbers(listed[1])
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _device_ids(iota[2], iota[3]).reshape(_numbers(iota[1]))[0].tolist()
    if mesh := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", text):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        sizes = [int(size) for size in axes.values()]
        ids = _device_ids(mesh[2] or str(math.prod(sizes)), mesh[3]).reshape(sizes)
        return ids[tuple(slice(None) if f"'{axis}'" in mesh[4] else 0 for axis in axes)].ravel().tolist()
    raise ValueError(f"replica groups of an unknown form: {text[:80]}")


def _device_ids(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(order) if order else None)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
