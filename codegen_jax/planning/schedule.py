"""Break down a step's time by walking the compiled program in schedule order.

Durations are estimates. For fusions and copies, the compiler gives them in cycles, which include the time to launch the
operation (600 cycles on v4 for the smallest one). The cycles of Pallas kernels are counted in their machine code.
Collectives move their bytes at the bandwidth of the links along the torus axes that their group spans. An asynchronous
collective overlaps with the operations scheduled between its start and its done; all other collectives block the chip.
A program on the chip's SparseCores overlaps likewise, from when it gets its operands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from codegen_jax.planning.hlo import COLLECTIVES, Instruction, Module, UnknownForm, nbytes
from codegen_jax.planning.kernels import GridLoop, kernel_flops, kernel_seconds
from codegen_jax.planning.links import SPARSE_CORE_STARTS, Links, collective_of

# opcodes that cost nothing, or that run in parallel with the computation: prefetches into the chip's fast memory
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id")
FREE += ("send", "copy-start", "slice-start", "after-all", "optimization-barrier", "custom-call-start")


@dataclass(frozen=True)
class Operation:
    """An instruction with its cost.

    Attributes:
        name: name of the instruction.
        kind: matmul, other, pallas, cross-slice, or the opcode of a collective.
        op_name: the place in the JAX program that it comes from.
        count: executions per step.
        seconds: time per execution.
        exposed: the part of `seconds` that is not overlapped; less than `seconds` only for what runs asynchronously.
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


def operations(module: Module, links: Links, kernels: Mapping[str, GridLoop]) -> list[Operation]:
    """All operations of a step, in schedule order.

    Args:
        module: the program.
        links: the network.
        kernels: the loop of each Pallas kernel, by the instruction's name.

    Raises:
        UnknownForm: if a loop, a collective or a Pallas kernel has a form that this can't count.
    """
    return _Walk(module, links, kernels).operations(module.entry, 1)


@dataclass(frozen=True)
class _Walk:
    module: Module
    links: Links
    kernels: Mapping[str, GridLoop]

    def operations(self, computation: str, count: int) -> list[Operation]:
        """The operations of a computation that runs `count` times per step."""
        result: list[Operation] = []
        running: dict[str, tuple[int, float]] = {}  # asynchronous operations: index in result, end time
        started: set[str] = set()
        now = links_free = 0.0

        def wait_for(key: str) -> None:
            nonlocal now
            if key not in running:  # a copy, or a collective for which one that blocks the chip has waited
                return
            index, end = running.pop(key)
            waited = max(0.0, end - now)
            result[index] = replace(result[index], exposed=result[index].exposed + waited)
            now += waited

        for i in self.module.computations[computation].values():
            if i.opcode in ("while", "call"):
                times = count * self.module.trip_count(i) if i.opcode == "while" else count
                inner = self.operations(i.called("body") or i.called("to_apply") or "", times)
                result += inner
                now += sum(o.count * o.exposed for o in inner) / count
            elif i.opcode.endswith("-done"):
                wait_for(i.operands[0])
            elif i.opcode == "recv":  # from other slices, over the data-center network, which is separate
                received, seconds = self.links.from_other_slices(nbytes(i.arrays[0]))
                result.append(Operation(i.name, "cross-slice", i.op_name, count, seconds, 0.0, bytes=received))
                running[i.name] = (len(result) - 1, now + seconds)
            elif collective := collective_of(self.module, i):
                part, received = collective.part, collective.received
                if part in ("step", "done") and collective.key not in started:
                    raise UnknownForm(i.name, "part of a collective that nothing has started")
                started.add(collective.key)
                if part == "whole":  # the links carry one collective at a time
                    for key in [key for key, (index, _) in running.items() if result[index].kind in COLLECTIVES]:
                        wait_for(key)
                if part in ("start", "whole"):
                    seconds = self.links.seconds(collective.group, received)
                    result.append(Operation(i.name, collective.kind, i.op_name, count, seconds, 0.0, bytes=received))
                    links_free = max(now, links_free) + seconds
                    running[collective.key] = (len(result) - 1, links_free)
                if part in ("done", "whole"):
                    wait_for(collective.key)
                if part != "whole" and self.module.matmul_flops(i):  # the collective runs beside a product
                    result.append(self.compute(i, count))
                    now += result[-1].seconds
            elif i.opcode in SPARSE_CORE_STARTS:  # copies of rows; the result comes after the operands
                rows = i.arrays[len(i.operands) - (i.opcode == "custom-call-update")]
                seconds = 2 * nbytes(rows) / self.links.tpu.chip.hbm_bandwidth
                result.append(Operation(i.name, "other", i.op_name, count, seconds, 0.0))
                running[i.name] = (len(result) - 1, now + seconds)
            elif i.opcode not in FREE:
                result.append(self.compute(i, count))
                now += result[-1].seconds
        return result

    def compute(self, i: Instruction, count: int) -> Operation:
        """An operation without communication."""
        chip = self.links.tpu.chip
        if i.is_pallas:
            seconds = kernel_seconds(i, self.kernels[i.name], chip)
            return Operation(i.name, "pallas", i.op_name, count, seconds, seconds, kernel_flops(i))
        flops = self.module.matmul_flops(i)
        if i.cycles is not None:
            seconds = i.cycles / chip.clock
        elif i.opcode in ("fusion", "copy", "dynamic-update-slice"):  # a few small ones have no cycles
            seconds = 2 * sum(map(nbytes, i.arrays)) / chip.hbm_bandwidth
        else:
            seconds = 0.0
        return Operation(i.name, "matmul" if flops else "other", i.op_name, count, seconds, seconds, flops)
