"""The fastest plan that fits, by trial."""

from collections.abc import Callable
from dataclasses import replace

from codegen_jax.config import MeshConfig, RunConfig
from codegen_jax.errors import UserError, require
from codegen_jax.planning.plan import Plan, make_plan
from codegen_jax.planning.slices import Slice

REMAT = ("dots", "qkv_attention", "attention", "full")  # by what is computed twice, least first


def settings(config: RunConfig) -> str:
    """The fields that `fit` chooses, as words of a command line."""
    training, mesh = config.training, config.mesh
    return (
        f"--training.remat {training.remat} "
        f"--training.gradient_accumulation_steps {training.gradient_accumulation_steps} "
        f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor}"
    )


def fit(config: RunConfig, tpu: Slice, slices: int, tell: Callable[[str], None]) -> tuple[RunConfig, Plan]:
    """The fastest of the configs that differ from the given one in micro-batches, remat policy and mesh.

    Not all of them: for 1, 2 and 4 micro-batches the first remat policy that fits, then, with the best of these,
    other divisions of the same chips among data and fsdp. `tell` takes a line about each trial.

    Raises:
        UserError: if nothing fits.
    """
    best: tuple[RunConfig, Plan] | None = None

    def fits(candidate: RunConfig) -> bool:
        nonlocal best
        try:
            plan = make_plan(candidate, tpu, slices)
        except UserError as error:  # the mesh does not divide the model or the batch
            tell(f"{settings(candidate)}: {error}")
            return False
        if not plan.memory.fits:
            tell(f"{settings(candidate)}: does not fit")
            return False
        tell(f"{settings(candidate)}: {plan.step_seconds:.4f} s, MFU {plan.mfu:.1%}")
        if best is None or plan.step_seconds < best[1].step_seconds:
            best = candidate, plan
        return True

    for micro_batches in (1, 2, 4):
        if config.training.batch_size % micro_batches == 0:
            training = replace(config.training, gradient_accumulation_steps=micro_batches)
            for remat in REMAT:
                if fits(replace(config, training=replace(training, remat=remat))):
                    break
    require(best is not None, f"fit: nothing fits {tpu.name}; take a larger topology or a smaller batch")
    assert best is not None
    chosen, axes = best[0], best[1].mesh
    rows = axes["data"] * axes["fsdp"]
    for fsdp in (axes["fsdp"] // 4, axes["fsdp"] // 2, axes["fsdp"] * 2, axes["fsdp"] * 4):
        if fsdp and rows % fsdp == 0:
            fits(replace(chosen, mesh=MeshConfig(rows // fsdp, fsdp, axes["tensor"])))
    return best
