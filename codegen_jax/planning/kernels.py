"""Cycles of Pallas kernels, counted in the machine code that the compiler writes, since it estimates none.

A line of this code is a bundle: the instructions that a core issues in one cycle. An attention kernel is a loop over a
grid. Each step of the loop issues some bundles in any case, and there are blocks behind branches. In ours, each step
takes the branch of its block of queries. In splash attention and in the older flash attention of
jax.experimental.pallas, one branch computes a tile, if the mask keeps any of it, and others run at the first and last
tile of a row. The kernel that decodes (inference/cached_attention.py) has no branches. Waiting for memory is counted
only where a kernel's arrays could not be read and written once in the time of its bundles.
"""

import math
import re
from dataclasses import dataclass

from codegen_jax.chips import LANES, Chip
from codegen_jax.planning.hlo import Instruction, Module, UnknownForm, nbytes
from codegen_jax.planning.kernel_code import Kernel, machine_code, operands
from codegen_jax.planning.slices import Slice

# matrix products in each kernel: scores and output; scores, and the gradients of weights, values, keys and queries;
# in splash and flash, which compute some of these twice: scores, dv, dp and dk; scores, dp and dq
PRODUCTS = {"cached": 2, "forward": 2, "backward": 5, "fwd": 2, "dkv": 4, "dq": 3}
PIPELINE_STEPS = 2  # iterations beyond the grid, in which the loop only starts the first and awaits the last copies
SHORT = 60  # bundles; shorter blocks await or start copies, and are counted in every step


@dataclass(frozen=True)
class GridLoop:
    """The bundles of a kernel's loop, as executed by one core.

    Attributes:
        steps: number of grid steps; half of the grid if its first axis is split between two cores.
        always: bundles that every step issues.
        blocks: bundles of the blocks that some steps issue, the longest first.
    """

    steps: int
    always: int
    blocks: tuple[int, ...]


def grid_loops(module: Module, tpu: Slice) -> dict[str, GridLoop]:
    """The loop of each Pallas kernel in a program, by the instruction's name.

    Raises:
        UnknownForm: if a kernel's machine code does not have the form described above.
    """
    kernels = {i.name: Kernel.of(i) for i, _ in module.executed() if i.is_pallas}
    different = tuple(dict.fromkeys(kernels.values()))
    code = dict(zip(different, machine_code(different, tpu.kind) if different else (), strict=True))
    return {name: parse_loop(name, code[kernel]) for name, kernel in kernels.items()}


def parse_loop(name: str, code: str) -> GridLoop:
    """Parse a kernel's bundles.

    Raises:
        UnknownForm: if they are not one loop with a constant number of iterations.
    """
    lines, address = [], 0
    for line in code.splitlines():  # a bundle's text may go on in the next line
        if match := re.match(r"\s*0x([0-9a-f]+)\s", line):
            address = int(match[1], 16)
        lines.append((address, line))
    starts = [address for address, line in lines if re.match(r"\s*0x[0-9a-f]+ LB:", line)]
    exits = [int(bound) for _, line in lines for bound in re.findall(r"(\d+)\s*/\* loop exit test", line)]
    if len(starts) != 1 or len(exits) != 1:
        raise UnknownForm(name, f"no cost model for this Pallas kernel: {len(starts)} loops in its machine code")
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
    # the longest block holds the others: the two steps that only copy jump over it. One before it starts copies
    (begin, end), *others = sorted(jumps, key=lambda jump: jump[0] - jump[1]) or [(0, 0)]
    blocks = [(b, e) for b, e in others if begin < b and e <= end]
    if any(e > begin for b, e in set(others) - set(blocks)):
        raise UnknownForm(name, "no cost model for this Pallas kernel: no branch holds all others")
    lengths = [e - b for b, e in blocks if not any(other_b < b and e <= other_e for other_b, other_e in blocks)]
    always = lines[-1][0] - starts[0] - sum(lengths)
    return GridLoop(exits[0] - PIPELINE_STEPS, always, tuple(lengths))


def kernel_seconds(i: Instruction, loop: GridLoop, chip: Chip) -> float:
    """The time of an attention kernel: its cycles, or moving its arrays once, in tiles of 8 x 128, whichever is longer.

    Raises:
        UnknownForm: if this is another Pallas kernel.
    """
    tiled = lambda dims: (*dims[:-2], -(-dims[-2] // 8) * 8, -(-dims[-1] // LANES) * LANES) if len(dims) > 1 else dims
    moved = sum(nbytes((dtype, tiled(dims))) for dtype, dims in (*operands(i), *i.arrays))
    return max(kernel_cycles(i, loop) / chip.clock, moved / chip.hbm_bandwidth)


def kernel_cycles(i: Instruction, loop: GridLoop) -> float:
    """The cycles of an attention kernel with a causal mask, or of the one that decodes.

    Raises:
        UnknownForm: if this is another Pallas kernel.
    """
    kernel = _attention_of(i)
    if not kernel.tiled:
        if kernel.rows > 1 and len(loop.blocks) < kernel.rows:
            raise UnknownForm(i.name, f"{len(loop.blocks)} branches in its machine code for {kernel.rows} blocks")
        return loop.steps * (loop.always + sum(loop.blocks) / kernel.rows)
    if not loop.blocks and kernel.columns > 1:
        raise UnknownForm(i.name, "no cost model for this Pallas kernel: its machine code has no blocks for tiles")
    tile, *edges = loop.blocks or (0,)
    return loop.steps * (loop.always + tile * kernel.kept + sum(edges) / kernel.columns)


def kernel_flops(i: Instruction) -> int:
    """FLOPs of an attention kernel: only tiles that a causal mask keeps, with heads padded to full lanes.

    Raises:
        UnknownForm: if this is another Pallas kernel.
    """
    kernel = _attention_of(i)
    padded = -(-kernel.head_dim // LANES) * LANES
    return int(2 * kernel.products * kernel.heads * padded * kernel.queries * kernel.keys * kernel.kept)


@dataclass(frozen=True)
class _Attention:
    """What an attention kernel's name and arrays say.

    Attributes:
        products: matrix products per tile.
        heads: heads of all rows.
        queries, keys, head_dim: sizes of one head.
        rows, columns: numbers of tiles along queries and keys.
        tiled: whether a step of the grid computes one tile (splash and flash) or all those of a row
            (model/attention_tpu.py).
    """

    products: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    rows: int
    columns: int
    tiled: bool

    @property
    def kept(self) -> float:
        """The share of tiles on or below the diagonal."""
        rows, columns = self.rows, self.columns
        tiles = sum(column * rows <= (row + 1) * columns - 1 for row in range(rows) for column in range(columns))
        return tiles / (rows * columns)


def _attention_of(i: Instruction) -> _Attention:
    if ours := re.search(r"attention_(forward|backward)_(\d+)", i.name + i.op_name):
        # the second result is logsumexp [B, H, 1, T], or dk [B, H, S, K]
        (_, (*heads, first, last)), (_, second), *_ = i.arrays
        length = second[-1] if ours[1] == "forward" else second[-2]
        blocks = length // int(ours[2])
        sizes = (length, length, first * last // length)
        return _Attention(PRODUCTS[ours[1]], math.prod(heads), *sizes, blocks, blocks, tiled=False)
    if "cached_attention" in i.name + i.op_name:  # of all queries to all slots: no tiles
        _, _, (_, query), _, _, (_, keys), *_ = operands(i)  # positions, queries, new keys and values, the cache's keys
        return _Attention(PRODUCTS["cached"], math.prod(query[:-2]), query[-2], keys[-1], query[-1], 1, 1, tiled=False)
    splash = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", i.name + i.op_name)
    grids = [dims for dtype, dims in operands(i) if dtype == "s8" and len(dims) == 3]
    if not (splash and grids):
        return _flash_of(i)
    query, key = [dims for dtype, dims in operands(i) if dtype in ("bf16", "f32")][:2]
    time, channels = (-1, -2) if re.search(r'q_layout\\?": 2', i.attributes) else (-2, -1)  # 2: QKVLayout.SEQ_MINOR
    # the fused backward kernel also gives partial sums of dq, with one more axis
    fused = splash[1] == "dkv" and any(len(dims) > len(query) for _, dims in i.arrays)
    sizes = (query[time], key[time], query[channels])
    return _Attention(PRODUCTS[splash[1]] + fused, math.prod(query[:-2]), *sizes, *grids[0][1:], tiled=True)


def _flash_of(i: Instruction) -> _Attention:
    backward = re.search(r"flash_mha_bwd_(dq|dkv)", i.name + i.op_name)
    if not backward and "flash_attention" not in i.name + i.op_name:
        raise UnknownForm(i.name, "no cost model for this Pallas kernel")
    query, key = [dims for _, dims in operands(i)][:2]
    # the last two axes are blocks of queries and of keys; for dkv of keys and of queries, of which as many are kept
    rows, columns = Kernel.of(i).grid[-2:]
    sizes = (query[-2], key[-2], query[-1])
    return _Attention(PRODUCTS[backward[1] if backward else "fwd"], math.prod(query[:-2]), *sizes, rows, columns, True)
