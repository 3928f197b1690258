"""Print a plan as text and plot it."""

import math
import re
from pathlib import Path
from typing import Any

from codegen_jax.chips import GIB
from codegen_jax.planning import calibration
from codegen_jax.planning.plan import COMPUTE, Plan, remedies

NAMES = {"matmul": "matrix products", "other": "elementwise, copies", "pallas": "attention kernels"}


def describe(plan: Plan, price: float | None = None) -> str:
    """A plan as human-readable text, with the cost of the run at a price per chip-hour."""
    chips = math.prod(plan.mesh.values())
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    name = plan.topology if plan.slices == 1 else f"{plan.slices} x {plan.topology}"
    lines = [
        f"{name}, {chips} chips, mesh {mesh}, remat {plan.remat}, "
        f"gradient_accumulation_steps {plan.gradient_accumulation_steps}",
        f"compiled in {plan.compile_seconds:.0f} s",
        "",
        *_parameters(plan),
        "",
        *_memory(plan),
    ]
    if not plan.memory.fits:
        return "\n".join([*lines, f"  to reduce memory, use any one of: {'; '.join(remedies(plan))}; --fit"])
    return "\n".join([*lines, "", *_time(plan), *_whole_run(plan, price), "", *_longest(plan)])


def _parameters(plan: Plan) -> list[str]:
    size = lambda shape: "x".join(map(str, shape))
    rows = [(name, size(shape), partition, size(shard)) for name, shape, partition, shard in plan.parameters]
    name, shape, partition = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"  {row[0]:{name}}  {row[1]:>{shape}}  {row[2]:{partition}}  {row[3]}" for row in rows]
    return ["parameter, shape, partition, shape per chip", *lines]


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    available = f"{memory.available / GIB:.2f} GiB"
    if not memory.fits:
        return [
            f"does not fit: needs at least {memory.peak / GIB:.2f} GiB per chip, but only {available} are available "
            f"(at least {(memory.peak - memory.available) / GIB:.2f} GiB too much)",
            f"  parameters {memory.parameters / GIB:.2f} GiB, moments {memory.moments / GIB:.2f} GiB",
        ]
    kinds = ("parameters", "moments", "activations", "temporary")
    return [
        "HBM per chip",
        *(f"  {kind:12}{getattr(memory, kind) / GIB:7.2f} GiB" for kind in kinds),
        f"  peak        {memory.peak / GIB:7.2f} GiB of {available}: {memory.peak / memory.available:.0%}",
    ]


def _time(plan: Plan) -> list[str]:
    serial = plan.seconds(exposed=False)
    compiled = sum(o.count * o.flops for o in plan.operations if o.kind == "matmul")
    lines = [
        "estimated time per step: the compiler's cycles, kernels by their machine code, collectives at link bandwidth",
        f"  model FLOPs         {plan.model_flops:.3e} per chip: {plan.model_flops / plan.peak_flops:.4f} s at peak; "
        f"compiled matrix products {compiled:.3e}",
        *(f"  {NAMES[kind]:20}{plan.seconds(kind):8.4f} s" for kind in COMPUTE),
    ]
    for kind in plan.collectives:
        chosen = [o for o in plan.operations if o.kind == kind]
        received = sum(o.count * o.bytes for o in chosen)
        lines.append(
            f"  {kind:20}{plan.seconds(kind):8.4f} s exposed of {plan.seconds(kind, exposed=False):.4f} s, "
            f"{sum(o.count for o in chosen)} operations, {received / 1e9:.2f} GB received"
        )
    for name, seconds in (("with overlap", plan.step_seconds), ("without overlap", serial)):
        lines.append(
            f"  step {name:15}{seconds:8.4f} s, {plan.tokens / seconds:,.0f} tokens/s/chip, "
            f"MFU {plan.model_flops / (plan.peak_flops * seconds):.1%}"
        )
    return [*lines, *_calibrated(plan)]


def _calibrated(plan: Plan) -> list[str]:
    """The range of the step's time, by how far the estimates of measured steps were off."""
    (least, greatest), (lower, upper) = calibration.span(), plan.step_range
    mfu = lambda seconds: f"{plan.model_flops / (plan.peak_flops * seconds):.1%}"
    kind = plan.topology.split("-")[0]
    alike = [f"{step.model}, {step.topology}: {step.ratio:.2f}" for step in calibration.steps_on(kind)]
    return [
        f"  step, range         {lower:8.4f} to {upper:.4f} s, MFU {mfu(upper)} to {mfu(lower)}, "
        f"since measured steps took {least:.2f} to {greatest:.2f} of their estimates",
        f"  measured on {kind:8}  {'; '.join(alike) or 'nothing'}",
    ]


def _whole_run(plan: Plan, price: float | None) -> list[str]:
    if plan.steps is None or plan.run_seconds is None or plan.chip_hours is None:
        return ["  the number of steps depends on the data (training.epochs)"]
    cost = "" if price is None else f", {price * plan.chip_hours:,.0f} at {price:g} per chip-hour"
    days, hours = plan.run_seconds / 86400, plan.chip_hours
    return [
        f"  {plan.steps:,} steps: {days:,.1f} days, {hours:,.0f} chip-hours{cost}, without validation and checkpoints"
    ]


def _longest(plan: Plan, number: int = 12) -> list[str]:
    longest = sorted(plan.operations, key=lambda o: -o.count * o.exposed)[:number]
    lines = ["longest operations: seconds per step, executions per step, share of peak FLOP/s, kind, source"]
    for o in longest:
        share = f"{o.flops / (o.seconds * plan.peak_flops):4.0%}" if o.flops else "    "
        source = re.sub(r"^jit\(train_step\)/|shard_map/|closed_call/", "", o.op_name) or o.name
        lines.append(f"  {o.count * o.exposed:8.4f}  x{o.count:<4} {share}  {o.kind:14} {source[-70:]}")
    return lines


def plot(plan: Plan, path: str | Path) -> None:
    """Plot the breakdown of step time and memory per chip as two stacked bars, in a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    memory = plan.memory
    kinds = ("parameters", "moments", "activations", "temporary")
    gib = {name: (getattr(memory, name) or 0) / GIB for name in kinds}
    seconds = {NAMES.get(kind, kind): plan.seconds(kind) for kind in (*COMPUTE, *plan.collectives)}
    title = (
        f"{plan.topology}: {plan.step_seconds:.3f} s per step, MFU {plan.mfu:.1%} (estimates)"
        if memory.fits
        else (f"{plan.topology}: does not fit")
    )
    figure, (top, bottom) = plt.subplots(2, figsize=(9, 4), layout="constrained")
    _bar(top, seconds, "seconds per step" if memory.fits else "no time estimates", title)
    peak = f"peak {memory.peak / GIB:.1f} GiB"
    _bar(bottom, gib, "HBM per chip (GiB)", f"{peak} of {memory.available / GIB:.2f} GiB (dashed)")
    bottom.axvline(memory.available / GIB, color="black", linestyle="--", linewidth=1)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bar(axes: Any, parts: dict[str, float], label: str, title: str) -> None:
    left = 0.0
    for name, size in parts.items():
        axes.barh(0, size, left=left, label=f"{name} {size:.3g}")
        left += size
    axes.set(yticks=[], xlabel=label)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
