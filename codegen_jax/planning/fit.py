"""Search for the fastest plan that fits, by compiling candidates."""

from collections.abc import Callable
from dataclasses import replace

from codegen_jax.config import MeshConfig, RunConfig
from codegen_jax.errors import UserError, require
from codegen_jax.planning.plan import Plan, make_plan
from codegen_jax.planning.slices import Slice

REMAT = ("dots", "qkv_attention", "attention", "full")  # from the least to the most recomputation


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

    The search is not exhaustive. For 1, 2 and 4 micro-batches it takes the first remat policy that fits; for the
    fastest of these plans it then tries other ways to divide the same chips between data and fsdp.

    Args:
        config: the run's config.
        tpu: the slice.
        slices: number of slices.
        progress: called with a line about each candidate.

    Raises:
        UserError: if no candidate fits.
    """
    best: tuple[RunConfig, Plan] | None = None

    def fits(candidate: RunConfig) -> bool:
        nonlocal best
        try:
            plan = make_plan(candidate, tpu, slices)
        except UserError as error:  # the mesh does not divide the model or the batch
            progress(f"{settings(candidate)}: {error}")
            return False
        if not plan.memory.fits:
            progress(f"{settings(candidate)}: does not fit")
            return False
        progress(f"{settings(candidate)}: {plan.step_seconds:.4f} s per step, MFU {plan.mfu:.1%}")
        if best is None or plan.step_seconds < best[1].step_seconds:
            best = candidate, plan
        return True

    for micro_batches in (1, 2, 4):
        if config.training.batch_size % micro_batches == 0:
            training = replace(config.training, gradient_accumulation_steps=micro_batches)
            for remat in REMAT:
                if fits(replace(config, training=replace(training, remat=remat))):
                    break
    require(best is not None, f"fit: nothing fits on {tpu.name}; use a larger topology or a smaller batch size")
    assert best is not None
    chosen, axes = best[0], best[1].mesh
    rows = axes["data"] * axes["fsdp"]
    for fsdp in (axes["fsdp"] // 4, axes["fsdp"] // 2, axes["fsdp"] * 2, axes["fsdp"] * 4):
        if fsdp and rows % fsdp == 0:
            fits(replace(chosen, mesh=MeshConfig(rows // fsdp, fsdp, axes["tensor"])))
    return best
