"""Search for the fastest plan that fits, by compiling candidates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from codegen_jax.config import MeshConfig, RunConfig
from codegen_jax.errors import UserError, require
from codegen_jax.planning.plan import Plan, make_plan
from codegen_jax.planning.slices import Slice, slice_devices
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve

REMAT = ("dots", "qkv_attention", "attention", "full")  # from the least to the most recomputation
MICRO_BATCHES = (1, 2, 4, 8)


def settings(config: RunConfig) -> str:
    """The fields chosen by `fit`, as command-line flags."""
    training, mesh = config.training, config.mesh
    return (
        f"--training.remat {training.remat} "
        f"--training.gradient_accumulation_steps {training.gradient_accumulation_steps} "
        f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor}"
    )


def fit(config: RunConfig, tpu: Slice, slices: int, progress: Callable[[str], None]) -> tuple[RunConfig, Plan]:
    """Find a fast config that fits by varying the number of micro-batches, the remat policy and the mesh.

    The search is not exhaustive. It starts with the config's mesh, or the nearest one on which the settings that need
    the least memory fit. There, it takes for each number of micro-batches the first remat policy that fits. For the
    fastest of these plans it then tries other ways to divide the same chips between data and fsdp.

    Args:
        config: the run's config.
        tpu: the slice.
        slices: number of slices.
        progress: called with a line about each candidate.

    Raises:
        UserError: if no mesh divides the model and the batch, or no candidate fits.
    """
    best: tuple[RunConfig, Plan] | None = None

    def fits(candidate: RunConfig) -> bool:
        nonlocal best
        plan = make_plan(candidate, tpu, slices)
        if not plan.memory.fits:
            progress(f"{settings(candidate)}: does not fit")
            return False
        progress(f"{settings(candidate)}: {plan.step_seconds:.4f} s per step, MFU {plan.mfu:.1%}")
        if best is None or plan.step_seconds < best[1].step_seconds:
            best = candidate, plan
        return True

    devices = slice_devices(tpu, slices)
    too_small = 0  # shards of fsdp with which nothing fits; fewer need more memory
    for on_mesh in _on_meshes(config, devices, progress):
        if on_mesh.mesh.fsdp <= too_small:
            continue
        divisors = [n for n in MICRO_BATCHES if config.training.batch_size % n == 0]
        micro_batches = [n for n in divisors if _problem(with_training(on_mesh, n, "full"), devices) is None]
        if fits(with_training(on_mesh, micro_batches[-1], "full")):
            for n in micro_batches:
                for remat in REMAT[:-1] if n == micro_batches[-1] else REMAT:
                    if fits(with_training(on_mesh, n, remat)):
                        break
            break
        too_small = on_mesh.mesh.fsdp
    require(best is not None, f"fit: nothing fits on {tpu.name}; use a larger topology or a smaller batch size")
    assert best is not None
    chosen, axes = best[0], best[1].mesh
    rows = axes["data"] * axes["fsdp"]
    for fsdp in (axes["fsdp"] // 4, axes["fsdp"] // 2, axes["fsdp"] * 2, axes["fsdp"] * 4):
        if fsdp > too_small and rows % fsdp == 0:
            candidate = replace(chosen, mesh=MeshConfig(rows // fsdp, fsdp, axes["tensor"]))
            if _problem(candidate, devices) is None:
                fits(candidate)
    return best


def _on_meshes(config: RunConfig, devices: Sequence[Any], progress: Callable[[str], None]) -> list[RunConfig]:
    """The config on each mesh that divides the model and the batch, from the nearest to its own, by shards of fsdp."""
    wanted, chips = config.mesh, len(devices)
    if problem := _problem(with_training(config, 1, "full"), devices):
        tensor = wanted.tensor if wanted.tensor > 0 and chips % wanted.tensor == 0 else 1
        fsdp = wanted.fsdp if wanted.fsdp > 0 else chips // tensor
    else:
        axes = make_mesh(wanted, devices).shape
        tensor, fsdp = axes["tensor"], axes["fsdp"]
    rows = chips // tensor
    sizes = sorted((n for n in range(rows, 0, -1) if rows % n == 0), key=lambda n: abs(math.log(n / fsdp)))
    every = [replace(config, mesh=MeshConfig(rows // n, n, tensor)) for n in sizes]
    result = [on_mesh for on_mesh in every if _problem(with_training(on_mesh, 1, "full"), devices) is None]
    if problem:
        require(bool(result), f"fit: no mesh divides the model and the batch: {problem}")
        progress(f"{problem}; searching other meshes")
    return result


def with_training(config: RunConfig, micro_batches: int, remat: str) -> RunConfig:
    return replace(config, training=replace(config.training, gradient_accumulation_steps=micro_batches, remat=remat))


def _problem(config: RunConfig, devices: Sequence[Any]) -> UserError | None:
    """Why the mesh does not divide the devices, the model or the batch, if so."""
    try:
        resolve(config, make_mesh(config.mesh, devices))
    except UserError as error:
        return error
    return None
