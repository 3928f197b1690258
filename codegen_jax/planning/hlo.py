"""Parse the text of a compiled TPU program into instructions in schedule order."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from codegen_jax.errors import UserError

Array = tuple[str, tuple[int, ...]]  # dtype and dimensions
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
CONTINUATION = re.compile(r'\n(?="|\}\})')  # the metadata of Pallas kernels is on lines of its own
COUNTERS = [[("s32", ())], [("u32", ())]]
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class UnknownForm(UserError):
    """The compiler's output has a form that the planner can't read or price.

    Args:
        name: the instruction, or what else has this form.
        reason: what was found.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}; plan was tried with libtpu 0.0.42 and 0.0.52")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: the name in the text, without the leading %.
        opcode: the operation, such as fusion, while or all-gather-start.
        shape: the result's type as text, including layouts.
        operands: names of the operands.
        attributes: the rest of the line, after the operands.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str = field(repr=False)

    @cached_property
    def arrays(self) -> list[Array]:
        """The dtype and dimensions of each array in the result."""
        return arrays_in(self.shape)

    @property
    def is_pallas(self) -> bool:
        return 'custom_call_target="tpu_custom_call"' in self.attributes

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of the duration in clock cycles, or None if it gives none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else None

    @property
    def op_name(self) -> str:
        """The place in the JAX program that the instruction comes from."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def called(self, attribute: str) -> str | None:
        """The computation, or the first one, named by an attribute such as `body` or `calls`."""
        match = re.search(rf"\b{attribute}=\{{?%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


def arrays_in(text: str) -> list[Array]:
    """The dtype and dimensions of each array in a list of shapes, which may include layouts."""
    return [(dtype, _dims(dims)) for dtype, dims in ARRAY.findall(re.sub(r"\{[^}]*\}", "", text))]


def nbytes(array: Array) -> int:
    """The size of an array in bytes, without layout padding."""
    dtype, dims = array
    return ITEM_BYTES.get(dtype, 4) * math.prod(dims)


class Module:
    """A scheduled HLO module.

    Attributes:
        computations: for each computation, its instructions by name, in execution order.
        entry: name of the computation at which the program starts.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in CONTINUATION.sub("", text).splitlines():
            if header := HEADER.match(line):
                self.computations[header[2]] = current = {}
                self.entry = header[2] if header[1] else self.entry
            elif start := INSTRUCTION.match(line):
                current[start[1]] = _parse(start[1], line[start.end() :])

    def trip_count(self, loop: Instruction) -> int:
        """The number of iterations of a while loop that counts from 0 up to a constant, which it does not reach.

        Raises:
            UnknownForm: if the loop has another form.
        """
        condition = self.computations[loop.called("condition") or ""]
        of_opcode = lambda name: [i for i in condition.values() if i.opcode == name and i.arrays in COUNTERS]
        bounds, counters = of_opcode("constant"), of_opcode("get-tuple-element")
        below = [i for i in condition.values() if "direction=LT" in i.attributes]
        if len(bounds) != 1 or len(counters) != 1 or len(below) != 1:
            raise UnknownForm(loop.name, "expected one counter and one constant in the loop's condition")
        body = self.computations[loop.called("body") or ""]
        index = re.search(r"index=(\d+)", counters[0].attributes)
        update = body[list(body.values())[-1].operands[int(index[1]) if index else 0]]
        while update.opcode in ("copy", "bitcast"):
            update = body[update.operands[0]]
        added = [body[name] for name in update.operands] if update.opcode == "add" else []
        steps = [int(i.operands[0]) for i in added if i.opcode == "constant"]
        if len(steps) != 1:
            raise UnknownForm(loop.name, "expected the loop to add a constant to its counter")
        return -(-int(bounds[0].operands[0]) // steps[0])

    def executed(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yield the instructions that run as separate operations, with the number of times that each one runs."""
        for instruction in self.computations[computation or self.entry].values():
            yield instruction, times
            if instruction.opcode == "while":
                yield from self.executed(instruction.called("body"), times * self.trip_count(instruction))
            elif instruction.opcode == "call":
                yield from self.executed(instruction.called("to_apply"), times)

    def matmul_flops(self, instruction: Instruction) -> int:
        """FLOPs of the matrix products in an instruction, including those inside a fusion."""
        if instruction.opcode == "fusion":
            inside = self.computations[instruction.called("calls") or ""]
            return sum(self._product_flops(i, inside) for i in inside.values())
        return 0

    def _product_flops(self, i: Instruction, computation: dict[str, Instruction]) -> int:
        if i.opcode == "fusion":
            return self.matmul_flops(i)
        if i.opcode != "convolution":
            return 0
        return _convolution_flops(i, computation[i.operands[0]].arrays[0][1], computation[i.operands[1]].arrays[0][1])


def _convolution_flops(i: Instruction, input_dims: tuple[int, ...], kernel_dims: tuple[int, ...]) -> int:
    """FLOPs of a convolution; the compiler turns every matrix product into one.

    Batch dimensions of a product become spatial dimensions, padded so that every pair of unequal batch indices falls
    into the padding. Only the pairs inside the array are counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels, f"{i.name}: no dim_labels"
    size = {label: n for label, n in zip(labels[1], input_dims, strict=True) if label.isdigit()}
    flops = 2 * math.prod(n for label, n in zip(labels[3], i.arrays[0][1], strict=True) if not label.isdigit())
    flops *= kernel_dims[labels[2].index("i")]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or [""])[0]))
    kernel = [int(n) for n in window.get("size", "").split("x") if n]
    stride, pad, dilate_input, dilate_kernel = (
        window.get(name, "x".join([default] * len(kernel))).split("x")
        for name, default in (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
    )
    for d, extent in enumerate(kernel):
        gap, before = int(dilate_input[d]), int(pad[d].split("_")[0])
        positions = (
            o * int(stride[d]) + k * int(dilate_kernel[d]) - before
            for o in range(i.arrays[0][1][labels[3].index(str(d))])
            for k in range(extent)
        )
        flops *= sum(0 <= position <= (size[str(d)] - 1) * gap and position % gap == 0 for position in positions)
    return flops


def _parse(name: str, text: str) -> Instruction:
    """Parse `SHAPE opcode(operands), attributes`; a shape may be a tuple, and its layouts may contain parentheses."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing])
    names = tuple(word.strip().lstrip("%") for word in operands.split(", ") if word)
    return Instruction(name, rest[:opening], shape, names, rest[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if not depth:
            return position
    raise UnknownForm(text[:80], "no closing parenthesis")


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)
