"""Collectives on the links of a slice: how many bytes each member receives, and how long they take."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from codegen_jax.planning.hlo import COLLECTIVES, Instruction, Module, UnknownForm, nbytes
from codegen_jax.planning.slices import Slice

# what gives a program on the SparseCores its operands, with libtpu 0.0.42 and 0.0.52
SPARSE_CORE_STARTS = ("call-start", "custom-call-update")
DCN_BANDWIDTH = 6.25e9  # bytes/s per chip between slices (scaling book: 25 GB/s per host of four chips)
HOP_SECONDS = 1e-6  # least time per link on the way, however few bytes it carries (scaling book, on sharding)


class Links:
    """The network of a slice, which determines how long collectives take.

    Attributes:
        tpu: the slice.
        coordinates: for each partition of the program, its position in the torus, followed by its slice.
    """

    def __init__(self, tpu: Slice, coordinates: Sequence[tuple[int, ...]]):
        self.tpu, self.coordinates = tpu, coordinates

    def seconds(self, group: Sequence[int], received: int) -> float:
        """The time in which each member of a group receives `received` bytes.

        A group that spans k rings uses 2k links at once, one in each direction of each ring. Along a line, or part of a
        ring, it uses a single link. Data reaches the opposite side of a ring in half as many hops as the ring has
        members, and crosses a whole line.
        """
        spanned = [len({self.coordinates[member][axis] for member in group}) for axis in range(4)]
        if spanned[3] > 1:
            return received / DCN_BANDWIDTH
        sides, wrap = (*self.tpu.shape, 1), (*self.tpu.wrap, False)
        axes = [axis for axis in range(3) if spanned[axis] > 1]
        if not axes:
            return 0.0
        ring = {axis: wrap[axis] and spanned[axis] == sides[axis] for axis in axes}
        links = sum(2 if ring[axis] else 1 for axis in axes)
        hops = sum(spanned[axis] // 2 if ring[axis] else spanned[axis] - 1 for axis in axes)
        return max(HOP_SECONDS * hops, received / (links * self.tpu.chip.link_bandwidth))

    def from_other_slices(self, size: int) -> tuple[int, float]:
        """The bytes that one chip receives, and the time, in an all-reduce of `size` bytes across slices."""
        slices = len({position[3] for position in self.coordinates})
        received = 2 * size * (slices - 1) // slices
        return received, received / DCN_BANDWIDTH


@dataclass(frozen=True)
class Collective:
    """A collective, or one of the fusions through which it runs.

    On v5e, a collective may be spread over several fusions: one starts it, products carry parts of it, and another
    waits for it. Each repeats the whole collective, with the same channel. On v5p and v6e, a program on the chip's
    SparseCores may run a collective, beside the TensorCores.

    Attributes:
        kind: the opcode, such as all-gather.
        part: whole (blocks the chip), start, step (of a fusion that computes something else) or done.
        key: what the parts of one collective have in common.
        received: bytes that each member receives.
        group: members of the first group.
    """

    kind: str
    part: Literal["whole", "start", "step", "done"]
    key: str
    received: int
    group: list[int]


def collective_of(module: Module, i: Instruction) -> Collective | None:
    """The collective that an instruction is, or that a fusion or asynchronous wrapper contains."""
    if i.opcode.removesuffix("-start") in COLLECTIVES:
        received, group = traffic(i)
        part = "start" if i.opcode.endswith("-start") else "whole"
        return Collective(i.opcode.removesuffix("-start"), part, i.name, received, group)
    called = i.called("calls") if i.opcode in ("fusion", "async-start") else None
    if i.opcode == "call-start":
        called = i.called("to_apply")
    elif i.opcode == "custom-call-update":  # gives its operands to a program that its first operand starts
        starts = [c[i.operands[0]] for c in module.computations.values() if i.operands[0] in c]
        called = starts[0].called("called_computations") if starts else None
    if i.opcode in SPARSE_CORE_STARTS and not called:
        raise UnknownForm(i.name, "expected a program of the SparseCores")
    inside = module.computations[called].values() if called else ()
    inner = next((inner for inner in inside if inner.opcode in COLLECTIVES), None)
    if inner is None:
        return None
    kind, (received, group) = inner.opcode, traffic(inner)
    if kind == "all-reduce" and "scatter" in f"{i.name} {called}":  # the fusion keeps only the chip's own shard
        kind, received = "reduce-scatter", received // 2
    if i.opcode in ("async-start", *SPARSE_CORE_STARTS):
        return Collective(kind, "start", i.name, received, group)
    channel = re.search(r"channel_id=\d+", inner.attributes)
    targets = " ".join(other.attributes for other in inside if other.opcode == "custom-call")
    if "AsyncCollectiveStart" in targets:
        part = "start"
    elif "AsyncCollectiveDone" in targets:
        part = "done"
    else:
        part = "step" if module.matmul_flops(i) else "whole"
    return Collective(kind, part, channel[0] if channel else i.name, received, group)


def traffic(i: Instruction) -> tuple[int, list[int]]:
    """The bytes that each member of a collective's first group receives on the best schedule, and that group."""
    sizes = [nbytes(array) for array in i.arrays]
    kind = i.opcode.removesuffix("-start")
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", i.attributes)
        return sizes[0], [int(n) for n in pairs.groups()] if pairs else []
    group = first_group(i.attributes)
    n = len(group)
    # the result of a -start instruction is (operands, results, ...)
    size = max(sizes) if i.opcode.endswith("-start") else sum(sizes)
    if kind == "reduce-scatter":
        size *= n
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1), group


def first_group(attributes: str) -> list[int]:
    """Members of the first replica group, in any of XLA's three notations.

    {{0,1},{2,3}} lists the groups. [2,4]<=[4,2]T(1,0) numbers the devices from 0, reshapes them to [4,2], transposes
    and reshapes to [2,4]; each row is a group. mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'} arranges such ids in
    a mesh, and the groups lie along the axes in braces; without device_ids, the ids are in order.
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
    raise UnknownForm(text[:80], "unknown notation for replica groups")


def _device_ids(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(order) if order else None)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
