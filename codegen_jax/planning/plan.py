"""Compile a run's training step for an absent TPU slice, and read its memory and time from the compiled program."""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from codegen_jax.chips import GIB
from codegen_jax.config import RunConfig
from codegen_jax.errors import UserError
from codegen_jax.planning import calibration
from codegen_jax.planning.hlo import Module, nbytes
from codegen_jax.planning.kernels import grid_loops
from codegen_jax.planning.links import Links
from codegen_jax.planning.schedule import Operation, operations
from codegen_jax.planning.slices import Slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import ResolvedRun, resolve
from codegen_jax.training.step import abstract_batch, abstract_state, make_train_step
from codegen_jax.weights.base import dotted

COMPUTE = ("matmul", "other", "pallas")


@dataclass(frozen=True)
class Memory:
    """HBM per chip, in bytes.

    Attributes:
        parameters: one chip's shards of the parameters: in float32, or as they are held below an adapter.
        moments: one chip's shards of the optimizer state.
        activations: activations kept between forward and backward pass; None if the program does not fit.
        temporary: everything else at the peak, such as gradients; None if the program does not fit.
        peak: peak memory; if the program does not fit, a lower bound (the compiler may report only temporaries).
        available: memory available to the program, as reported by the compiler.
    """

    parameters: int
    moments: int
    activations: int | None
    temporary: int | None
    peak: int
    available: int

    @property
    def fits(self) -> bool:
        return self.temporary is not None


@dataclass(frozen=True)
class Plan:
    """Memory and speed of a run on TPU slices. Times are estimates in seconds; `schedule.py` explains them.

    Attributes:
        topology: the slice's name.
        slices: number of slices.
        mesh: size of each mesh axis.
        remat: the remat policy, with `auto` resolved.
        gradient_accumulation_steps: number of micro-batches.
        rows_per_shard: rows of a micro-batch per chip; chips along the tensor axis share the same rows.
        tokens: tokens per step and chip.
        model_flops: model FLOPs per step and chip (6 x parameters + 6 x layers x width x sequence per token; 4 x
            parameters below an adapter).
        peak_flops: peak FLOP/s per chip.
        compile_seconds: compile time on this machine.
        memory: memory per chip.
        steps: steps of the whole run; None if it counts epochs, whose length depends on the data.
        operations: the operations of one step; empty if the program does not fit.
        parameters: name, shape, partition and shape per chip of each parameter; below an adapter, of the model's, too.
    """

    topology: str
    slices: int
    mesh: dict[str, int]
    remat: str
    gradient_accumulation_steps: int
    rows_per_shard: int
    tokens: int
    model_flops: float
    peak_flops: float
    compile_seconds: float
    memory: Memory
    steps: int | None
    operations: list[Operation]
    parameters: list[tuple[str, tuple[int, ...], str, tuple[int, ...]]]

    def seconds(self, *kinds: str, exposed: bool = True) -> float:
        """Time per step in operations of these kinds (default: all); `exposed` excludes time hidden by overlap."""
        chosen = [o for o in self.operations if not kinds or o.kind in kinds]
        return sum(o.count * (o.exposed if exposed else o.seconds) for o in chosen)

    @property
    def collectives(self) -> list[str]:
        """The kinds of collectives in the step."""
        return sorted({o.kind for o in self.operations if o.kind not in COMPUTE})

    @property
    def step_seconds(self) -> float:
        """Time per step, with collectives overlapped as scheduled."""
        return self.seconds()

    @property
    def step_range(self) -> tuple[float, float]:
        """The least and the greatest time per step, if the estimate is as far off as those of measured steps."""
        least, greatest = calibration.span()
        return least * self.step_seconds, greatest * self.step_seconds

    @property
    def run_seconds(self) -> float | None:
        """Time of all steps; None if their number depends on the data."""
        return None if self.steps is None else self.steps * self.step_seconds

    @property
    def chip_hours(self) -> float | None:
        """Time of all steps, times the number of chips, in hours; None if the number of steps depends on the data."""
        return None if self.run_seconds is None else self.run_seconds * math.prod(self.mesh.values()) / 3600

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the model's FLOPs as a share of the chip's peak."""
        return self.model_flops / (self.peak_flops * self.step_seconds)

    def to_dict(self, price: float | None = None) -> dict[str, Any]:
        """Plain values for JSON, without times if the program does not fit; `price` is per chip-hour."""
        result: dict[str, Any] = {
            "topology": self.topology,
            "slices": self.slices,
            "mesh": self.mesh,
            "remat": self.remat,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "fits": self.memory.fits,
            "memory_bytes": vars(self.memory),
            "compile_seconds": self.compile_seconds,
            "parameters": [
                {"name": name, "shape": shape, "partition": partition, "shard": shard}
                for name, shape, partition, shard in self.parameters
            ],
        }
        if not self.memory.fits:
            return result
        total = lambda kind, name: sum(o.count * getattr(o, name) for o in self.operations if o.kind == kind)
        serial = self.seconds(exposed=False)
        return result | {
            "estimates": {
                "step_seconds": self.step_seconds,
                "step_seconds_range": self.step_range,
                "mfu": self.mfu,
                "tokens_per_second_per_chip": self.tokens / self.step_seconds,
                "step_seconds_without_overlap": serial,
                "mfu_without_overlap": self.model_flops / (self.peak_flops * serial),
                "tokens_per_second_per_chip_without_overlap": self.tokens / serial,
            },
            "run": {
                "steps": self.steps,
                "seconds": self.run_seconds,
                "chip_hours": self.chip_hours,
                "cost": None if price is None or self.chip_hours is None else price * self.chip_hours,
            },
            "flops_per_chip": {
                "model": self.model_flops,
                **{f"compiled_{kind}": total(kind, "flops") for kind in ("matmul", "pallas")},
            },
            "compute_seconds": {kind: self.seconds(kind) for kind in COMPUTE},
            "collectives": {
                kind: {
                    "count": sum(o.count for o in self.operations if o.kind == kind),
                    "bytes_received": total(kind, "bytes"),
                    "seconds": self.seconds(kind, exposed=False),
                    "exposed_seconds": self.seconds(kind),
                }
                for kind in self.collectives
            },
            "operations": [vars(o) for o in self.operations],
        }


def make_plan(config: RunConfig, tpu: Slice, slices: int = 1, dump_hlo: str | Path | None = None) -> Plan:
    """Compile the step that `train` would run on these slices.

    Args:
        config: the run's config; its data need not exist.
        tpu: the slice.
        slices: number of slices; `mesh.data` must be a multiple of it.
        dump_hlo: file for the optimized HLO, which is written if the program fits.

    Raises:
        UserError: if libtpu is missing, or the mesh does not fit the slices or the model.
    """
    mesh = make_mesh(config.mesh, slice_devices(tpu, slices))
    run = resolve(config, mesh)
    state = abstract_state(run)
    train_step = make_train_step(run)
    start = time.perf_counter()
    compiled, needed = None, (0, 0)
    with jax.set_mesh(mesh):
        lowered = train_step.lower(state, abstract_batch(run))  # pyright: ignore[reportFunctionMemberAccess]
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = memory_of_error(error)
    seconds = time.perf_counter() - start

    held = {"adapter": state.params, "model": state.frozen} if run.adapter.rank else state.params
    parameters, moments = (sum(map(shard_bytes, jax.tree.leaves(tree))) for tree in (held, state.opt_state))
    if compiled is None:
        memory = Memory(parameters, moments, None, None, *needed)
        step_operations = []
    else:
        text = text_of(compiled)
        if dump_hlo:
            Path(dump_hlo).write_text(text)
        module = Module(text)
        step_operations = operations(module, links_of(mesh, tpu), grid_loops(module, tpu))
        analysis = compiled.memory_analysis()
        peak = analysis.peak_memory_in_bytes
        kept = min(activations(module, run), peak - parameters - moments)
        memory = Memory(parameters, moments, kept, peak - parameters - moments - kept, peak, tpu.chip.hbm_bytes)
    tokens_per_chip = run.training.batch_size * run.sequence_length // mesh.devices.size
    return Plan(
        topology=tpu.name,
        slices=slices,
        mesh=dict(mesh.shape),
        remat=run.training.remat,
        gradient_accumulation_steps=run.training.gradient_accumulation_steps,
        rows_per_shard=run.rows_per_shard,
        tokens=tokens_per_chip,
        model_flops=tokens_per_chip * config.flops_per_token,
        peak_flops=tpu.chip.peak_flops,
        compile_seconds=seconds,
        memory=memory,
        steps=config.training.steps if config.training.epochs is None else None,
        operations=step_operations,
        parameters=[
            (dotted(path), leaf.shape, str(leaf.sharding.spec), leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in jax.tree_util.tree_leaves_with_path(held)
        ],
    )


def text_of(compiled: Any) -> str:
    """The optimized HLO of a compiled program.

    Raises:
        UserError: if the versions of libtpu and jaxlib do not match.
    """
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"jaxlib cannot read the program compiled by libtpu ({str(error).splitlines()[0][:120]}); "
            "pip install 'codegen_jax[plan]' installs matching versions"
        ) from error


def links_of(mesh: Mesh, tpu: Slice) -> Links:
    return Links(tpu, [(*d.coords, getattr(d, "slice_index", 0)) for d in mesh.devices.flat])


def shard_bytes(leaf: Any) -> int:
    """The size in bytes of one device's shard of an array."""
    bits = 4 if leaf.dtype == jnp.uint4 else 8 * leaf.dtype.itemsize
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * bits // 8


def activations(module: Module, run: ResolvedRun) -> int:
    """The size in bytes of the activations that the loops over layers keep for the backward pass.

    They are the loops' arrays in the compute dtype that have a layer axis and a time axis.
    """
    dtype = {"bfloat16": "bf16", "float32": "f32"}[run.model.dtype]
    layers, time_steps = run.model.n_layer, run.sequence_length
    loops = [i for i, _ in module.executed() if i.opcode == "while"]
    kept = [
        [a for a in loop.arrays if a[0] == dtype and a[1][:1] == (layers,) and time_steps in a[1][1:]] for loop in loops
    ]
    return max((sum(map(nbytes, arrays)) for arrays in kept), default=0)


def memory_of_error(error: Exception) -> tuple[int, int]:
    """Parse the bytes needed and available from the compiler's out-of-memory error; raise any other error.

    XLA raises one exception type for every failure, so only the text distinguishes them.
    """
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message or "memory space vmem" in message:
        raise error
    sizes = [float(n) * GIB for n in re.findall(r"([\d.]+)G\b", message)]
    return (int(sizes[0]), int(sizes[1])) if len(sizes) > 1 else (0, 0)


def remedies(plan: Plan) -> list[str]:
    """Changes that would reduce the memory of a plan that does not fit."""
    cheaper = {"none": "dots", "dots": "qkv_attention", "qkv_attention": "attention", "attention": "full"}
    result = []
    if plan.remat in cheaper:
        result.append(f"--training.remat {cheaper[plan.remat]}")
    if plan.rows_per_shard % 2 == 0:
        result.append(f"--training.gradient_accumulation_steps {2 * plan.gradient_accumulation_steps}")
    if plan.mesh["data"] % 2 == 0:
        result.append(f"--mesh.data {plan.mesh['data'] // 2} --mesh.fsdp {2 * plan.mesh['fsdp']}")
    return [*result, "a larger --topology"]
