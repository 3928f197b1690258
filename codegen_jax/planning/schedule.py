"""Break down a step's time by walking the compiled program in schedule order.

Durations are estimates. For fusions and copies, the compiler gives them in cycles. Pallas kernels have no such estimate
and are assumed to run at `PALLAS_EFFICIENCY` of the chip's peak FLOP/s. Collectives move their bytes at the bandwidth
of the links along the torus axes that their group spans. An asynchronous collective overlaps with the operations
scheduled between its -start and -done instructions; all other collectives block the chip.
"""

import math
import re
from dataclasses import dataclass, replace

from codegen_jax.chips import LANES
from codegen_jax.planning.hlo import Instruction, Module, nbytes
from codegen_jax.planning.links import Links, collective_of, traffic
from codegen_jax.planning.slices import Slice

PALLAS_EFFICIENCY = 0.6
# matrix products in each splash kernel: scores and output; scores, dv, dp and dk; scores, dp and dq
SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
# opcodes that cost nothing, or that run in parallel with the computation: prefetches into the chip's fast memory
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "partition-id")
FREE += (
    "send",
    "send-done",
    "recv-done",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
    "async-done",
    "after-all",
    "optimization-barrier",
)


@dataclass(frozen=True)
class Operation:
    """An instruction with its cost.

    Attributes:
        name: name of the instruction.
        kind: matmul, other, pallas, cross-slice, or the opcode of a collective.
        op_name: the place in the JAX program that it comes from.
        count: executions per step.
        seconds: time per execution.
        exposed: the part of `seconds` that is not overlapped; less than `seconds` only for asynchronous collectives.
        flops: FLOPs of matrix products per execution.
        bytes: bytes that a chip receives per execution of a collective.
    """

    name: str
    kind: str
    op_name: str
    count: int
    seconds: float
    exposed: float
    flops: int = 0
    bytes: int = 0


def operations(module: Module, links: Links) -> list[Operation]:
    """All operations of a step, in schedule order."""
    return _walk(module, links, module.entry, 1)


def _walk(module: Module, links: Links, computation: str, count: int) -> list[Operation]:
    result: list[Operation] = []
    running: dict[str, tuple[int, float]] = {}  # asynchronous collectives: index in result, end time
    now = links_free = 0.0

    def wait_for(name: str) -> None:
        nonlocal now
        index, end = running.pop(name)
        waited = max(0.0, end - now)
        result[index] = replace(result[index], exposed=result[index].exposed + waited)
        now += waited

    for i in module.computations[computation].values():
        if i.opcode == "while":
            result += _walk(module, links, i.called("body") or "", count * module.trip_count(i))
        elif i.opcode == "call":
            result += _walk(module, links, i.called("to_apply") or "", count)
        elif i.opcode.endswith("-done") and i.operands[0] in running:
            wait_for(i.operands[0])
        elif source := collective_of(module, i):
            received, group = traffic(source)
            seconds = links.seconds(group, received)
            asynchronous = i.opcode.endswith("-start")
            if not asynchronous:  # the links carry one collective at a time
                for name in [name for name, (index, _) in running.items() if result[index].kind != "cross-slice"]:
                    wait_for(name)
            kind, exposed = source.opcode.removesuffix("-start"), 0.0 if asynchronous else seconds
            result.append(Operation(i.name, kind, i.op_name, count, seconds, exposed, bytes=received))
            links_free = max(now, links_free) + seconds
            if asynchronous:
                running[i.name] = (len(result) - 1, links_free)
            else:
                now = links_free
        elif i.opcode == "recv":  # from other slices, over the data-center network, in parallel with everything else
            received, seconds = links.from_other_slices(nbytes(i.arrays[0]))
            result.append(Operation(i.name, "cross-slice", i.op_name, count, seconds, 0.0, bytes=received))
            running[i.name] = (len(result) - 1, now + seconds)
        elif i.opcode not in FREE:
            result.append(_compute(module, links.tpu, i, count))
            now += result[-1].seconds
    return result


def _compute(module: Module, tpu: Slice, i: Instruction, count: int) -> Operation:
    flops = module.matmul_flops(i)
    if 'custom_call_target="tpu_custom_call"' in i.attributes:
        flops = splash_flops(i)
        seconds = flops / (PALLAS_EFFICIENCY * tpu.chip.peak_flops)
        return Operation(i.name, "pallas", i.op_name, count, seconds, seconds, flops)
    if i.cycles is not None:
        seconds = i.cycles / tpu.chip.clock
    elif i.opcode in ("fusion", "copy", "dynamic-update-slice"):  # the compiler gives no cycles for a few small ones
        seconds = 2 * sum(map(nbytes, i.arrays)) / tpu.chip.hbm_bandwidth
    else:
        seconds = 0.0
    return Operation(i.name, "matmul" if flops else "other", i.op_name, count, seconds, seconds, flops)


def splash_flops(i: Instruction) -> int:
    """FLOPs of a splash attention kernel: only tiles that the causal mask keeps, with heads padded to full lanes."""
    phase = re.search(r"splash_mha_(fwd|dkv|dq)", i.name + i.op_name)
    grid = re.search(r"operand_layout_constraints=\{s8\[\d+,(\d+),(\d+)\]", i.attributes)
    of_type = lambda name: [dims for dtype, dims in i.arrays if dtype == name]
    results = of_type("bf16") or of_type("f32")
    if not (phase and grid and results):
        raise ValueError(f"{i.name}: no cost model for this Pallas kernel")
    *rows_and_heads, length, head_dim = results[0]
    rows, columns = int(grid[1]), int(grid[2])
    tiles = sum(column * rows <= (row + 1) * columns - 1 for row in range(rows) for column in range(columns))
    padded = -(-head_dim // LANES) * LANES
    products = SPLASH_PRODUCTS[phase[1]]
    return 2 * products * math.prod(rows_and_heads) * padded * length * length * tiles // (rows * columns)
