"""A run resolved: everything its step is compiled from, with nothing left to choose while it is traced."""

import logging
from dataclasses import dataclass, replace

from jax.sharding import Mesh

from codegen_jax.config import CodeGenConfig, MeshConfig, OptimizerConfig, RunConfig, TrainingConfig
from codegen_jax.errors import UserError
from codegen_jax.model.attention import choose_backend
from codegen_jax.sharding import check_fit, make_mesh
from codegen_jax.training.remat import choose_remat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedRun:
    """What the training step, its plan and its benchmarks take; made by `resolve` or `resolve_step`.

    Attributes:
        mesh: of the devices that it runs on.
        model: whose `attention` is a backend.
        optimizer: as in the config.
        training: whose `remat` is a policy.
        sequence_length: tokens that a row trains on.
        document_mask: as in the config's data.
        seed: of the random weights.
        rows_per_shard: rows of a micro-batch on one device.
    """

    mesh: Mesh
    model: CodeGenConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sequence_length: int
    document_mask: bool
    seed: int
    rows_per_shard: int


def resolve(config: RunConfig, mesh: Mesh) -> ResolvedRun:
    """Settle what a config leaves to the devices.

    Raises:
        UserError: if the mesh does not divide what it shards.
    """
    data = config.data
    return resolve_step(
        mesh,
        config.model,
        config.optimizer,
        config.training,
        sequence_length=data.sequence_length,
        document_mask=data.document_mask,
        seed=config.seed,
    )


def resolve_step(
    mesh: Mesh,
    model: CodeGenConfig,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    *,
    sequence_length: int,
    document_mask: bool = False,
    seed: int = 0,
) -> ResolvedRun:
    """The same for a step that belongs to no run, such as a benchmark's.

    >>> run = resolve_step(mesh, model, optimizer, TrainingConfig(steps=1, batch_size=8), sequence_length=2048)
    >>> step = make_train_step(run)

    Raises:
        UserError: if the mesh does not divide what it shards.
    """
    check_fit(mesh, model, training)
    axes, kind = dict(mesh.shape), mesh.devices.flat[0].device_kind
    rows = training.batch_size // (training.gradient_accumulation_steps * axes["data"] * axes["fsdp"])
    remat, attention = training.remat, model.attention
    if remat == "auto":
        remat = choose_remat(model, rows * sequence_length, axes["fsdp"], axes["tensor"], kind)
    if attention == "auto":
        attention = choose_backend(kind, sequence_length, model.head_dim, model.dtype)
    return ResolvedRun(
        mesh=mesh,
        model=replace(model, attention=attention),
        optimizer=optimizer,
        training=replace(training, remat=remat),
        sequence_length=sequence_length,
        document_mask=document_mask,
        seed=seed,
        rows_per_shard=rows,
    )


def resolved_config(config: RunConfig) -> RunConfig:
    """The config with what the devices here settle written out; where its mesh does not fit them, as it is."""
    try:
        run = resolve(config, make_mesh(config.mesh))
    except UserError as error:
        log.warning(f"{error}; mesh, training.remat and model.attention are shown as they are written")
        return config
    return replace(config, model=run.model, training=run.training, mesh=MeshConfig(**dict(run.mesh.shape)))
