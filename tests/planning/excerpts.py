"""Make the excerpts of compiled programs that test_excerpts.py reads.

`python -m tests.planning.excerpts PROGRAM > EXCERPT.hlo`; `plan --dump-hlo` and scripts/bench_plan write programs.
"""

import re
import sys

from codegen_jax.planning.hlo import COLLECTIVES, CONTINUATION, HEADER, INSTRUCTION, Module


def layer_loops(module: Module) -> list[str]:
    """The bodies of the loops over layers: the two longest ones that contain no other loop."""
    bodies = {i.called("body") or "" for i, _ in module.executed() if i.opcode == "while"}
    inner = [body for body in bodies if not any(i.opcode == "while" for i in module.computations[body].values())]
    return sorted(inner, key=lambda body: len(module.computations[body]))[-2:]


def excerpt(text: str) -> str:
    """The loops over layers, and the products and collectives that they call; without kernels, and metadata."""
    module = Module(text)
    loops = layer_loops(module)
    calls = lambda name: [called for i in module.computations[name].values() if (called := i.called("calls"))]
    matters = lambda name: (
        any(i.opcode in ("convolution", *COLLECTIVES) for i in module.computations[name].values())
        or any(map(matters, calls(name)))
    )
    wanted, found = list(loops), set[str]()
    while wanted:
        found.add(name := wanted.pop())
        wanted += [called for called in calls(name) if called not in found and matters(called)]
    lines, is_wanted = ["%nothing () -> () {", "}"], False
    for line in CONTINUATION.sub("", text).splitlines():
        if header := HEADER.match(line):
            is_wanted = header[2] in found
        if "tpu_custom_call" in line:
            continue
        if is_wanted and (header or line == "}" or INSTRUCTION.match(line)):
            kept = lambda match: match[0] if match[1] in found else "calls=%nothing"
            lines.append(re.sub(r"\bcalls=%?([\w.\-]+)", kept, _shortened(line)))
    return "\n".join(lines) + "\n"


def _shortened(line: str) -> str:
    cycles = re.search(r'"estimated_cycles":"\d+"', line)
    line = re.sub(r", (metadata|frontend_attributes|backend_config|operand_layout_constraints)=.*", "", line)
    line = re.sub(r"(?<=\])\{[^}]*\}", "", line)
    line = re.sub(r"(replica_groups=\{\{[\d,]*\}),.*?\}\}", r"\1}", line)  # the first group only
    return f"{line}, {cycles[0]}" if cycles else line


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(excerpt(file.read()), end="")
