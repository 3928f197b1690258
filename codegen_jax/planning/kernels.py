"""Cycles of Pallas kernels, counted in the machine code that the compiler writes, since it estimates none.

A line of this code is a bundle: the instructions that a core issues in one cycle. A splash attention kernel is a loop
over a grid of tiles. Each step of the loop issues some bundles in any case; a block behind a branch computes a tile, if
the mask keeps any of it, and others run at the first and last tile of a row. Waiting for memory is not counted.
"""

import math
import re
from dataclasses import dataclass

from codegen_jax.chips import LANES
from codegen_jax.planning.hlo import Instruction, Module
from codegen_jax.planning.kernel_code import Kernel, machine_code, operands
from codegen_jax.planning.slices import Slice

# matrix products in each splash kernel: scores and output; scores, dv, dp and dk; scores, dp and dq
SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
PIPELINE_STEPS = 2  # iterations beyond the grid, in which the loop only starts the first and awaits the last copies
SHORT = 60  # bundles; shorter blocks await or start copies, and are counted in every step


@dataclass(frozen=True)
class GridLoop:
    """The bundles of a kernel's loop, as executed by one core.

    Attributes:
        steps: number of grid steps; half of the grid if its first axis is split between two cores.
        always: bundles that every step issues.
        tile: bundles of the block that computes a tile.
        edges: bundles of the blocks at the first and last tile of a row.
    """

    steps: int
    always: int
    tile: int
    edges: int


def grid_loops(module: Module, tpu: Slice) -> dict[str, GridLoop]:
    """The loop of each Pallas kernel in a program, by the instruction's name.

    Raises:
        ValueError: if a kernel's machine code does not have the form described above.
    """
    kernels = {i.name: Kernel.of(i) for i, _ in module.executed() if i.is_pallas}
    different = tuple(dict.fromkeys(kernels.values()))
    code = dict(zip(different, machine_code(different, tpu.kind) if different else (), strict=True))
    return {name: parse_loop(name, code[kernel]) for name, kernel in kernels.items()}


def parse_loop(name: str, code: str) -> GridLoop:
    """Parse a kernel's bundles.

    Raises:
        ValueError: if they are not one loop with a constant number of iterations.
    """
    lines, address = [], 0
    for line in code.splitlines():  # a bundle's text may go on in the next line
        if match := re.match(r"\s*0x([0-9a-f]+)\s", line):
            address = int(match[1], 16)
        lines.append((address, line))
    starts = [address for address, line in lines if re.match(r"\s*0x[0-9a-f]+ LB:", line)]
    exits = [int(bound) for _, line in lines for bound in re.findall(r"(\d+)\s*/\* loop exit test", line)]
    if len(starts) != 1 or len(exits) != 1:
        raise ValueError(f"{name}: no cost model for this Pallas kernel: {len(starts)} loops in its machine code")
    regions: dict[str, int] = {}
    for address, line in lines:
        for region in re.findall(r"Start(?:/End empty)? region (\d+)", line):
            regions.setdefault(region, address)
    jumps = [
        (address, regions[region])
        for address, line in lines
        for region in re.findall(r"sbr\.rel \(!?%p\w+\) target = \$region(\d+)", line)
        if regions.get(region, 0) - address > SHORT and address > starts[0]
    ]
    # the longest block holds all the others: the two steps that only copy jump over it
    (begin, end), *blocks = sorted(jumps, key=lambda jump: jump[0] - jump[1]) or [(0, 0)]
    lengths = [e - b for b, e in blocks if not any(other_b < b and e <= other_e for other_b, other_e in blocks)]
    if not lengths or not begin < blocks[0][0] < blocks[0][1] <= end:
        raise ValueError(f"{name}: no cost model for this Pallas kernel: its machine code has no blocks for tiles")
    tile, *edges = lengths
    always = lines[-1][0] - starts[0] - sum(lengths)
    return GridLoop(exits[0] - PIPELINE_STEPS, always, tile, sum(edges))


def kernel_cycles(i: Instruction, loop: GridLoop) -> float:
    """The cycles of a splash attention kernel with a causal mask."""
    phase, rows, columns = _phase_and_grid(i)
    inner = rows if phase == "dkv" else columns  # the grid's last axis
    return loop.steps * (loop.always + loop.tile * _kept(rows, columns) + loop.edges / inner)


def splash_flops(i: Instruction) -> int:
    """FLOPs of a splash attention kernel: only tiles that the causal mask keeps, with heads padded to full lanes.

    Raises:
        ValueError: if this is another Pallas kernel.
    """
    phase, rows, columns = _phase_and_grid(i)
    inputs = [dims for dtype, dims in operands(i) if dtype in ("bf16", "f32")]
    seq_minor = re.search(r'q_layout\\?": 2', i.attributes) is not None  # QKVLayout.SEQ_MINOR
    (*batch_and_heads, length, head_dim), key = inputs[0], inputs[1]
    keys = key[-2]
    if seq_minor:
        length, head_dim, keys = head_dim, length, key[-1]
    # the fused backward kernel also gives partial sums of dq, with one more axis
    fused = phase == "dkv" and any(len(dims) > len(inputs[0]) for _, dims in i.arrays)
    products = SPLASH_PRODUCTS[phase] + fused
    padded = -(-head_dim // LANES) * LANES
    return int(2 * products * math.prod(batch_and_heads) * padded * length * keys * _kept(rows, columns))


def _phase_and_grid(i: Instruction) -> tuple[str, int, int]:
    """The kernel's name, and the numbers of tiles along queries and keys."""
    phase = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", i.name + i.op_name)
    grids = [dims for dtype, dims in operands(i) if dtype == "s8" and len(dims) == 3]
    if not (phase and grids):
        raise ValueError(f"{i.name}: no cost model for this Pallas kernel")
    return phase[1], grids[0][1], grids[0][2]


def _kept(rows: int, columns: int) -> float:
    """The share of tiles on or below the diagonal."""
    tiles = sum(column * rows <= (row + 1) * columns - 1 for row in range(rows) for column in range(columns))
    return tiles / (rows * columns)
