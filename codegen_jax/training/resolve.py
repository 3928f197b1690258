"""A resolved run: everything needed to compile its step, with no choices left to make during tracing."""

import logging
import math
from dataclasses import dataclass, replace
from fractions import Fraction

from jax.sharding import Mesh

from codegen_jax.config import AdapterConfig, CodeGenConfig, MeshConfig, OptimizerConfig, RunConfig, TrainingConfig
from codegen_jax.data.infill import TOKENS
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokenizer_metadata import LAYOUT_FILE
from codegen_jax.errors import UserError, require
from codegen_jax.model.attention import choose_backend
from codegen_jax.sharding import check_fit, make_mesh
from codegen_jax.training.remat import choose_remat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedRun:
    """Defines a training step, to run, plan or benchmark it; created by `resolve` or `resolve_step`.

    Attributes:
        mesh: the run's device mesh.
        model: model config with `attention` resolved to a backend.
        optimizer: as in the config, with `decay_steps` resolved.
        training: training config with `remat` resolved to a policy.
        sequence_length: tokens trained on per row.
        document_mask: as in the config's data section.
        adapter: as in the config, with `trainable_tokens` resolved.
        seed: seed of the random weights and of dropout.
        rows_per_shard: rows per micro-batch on each shard along data and fsdp.
    """

    mesh: Mesh
    model: CodeGenConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sequence_length: int
    document_mask: bool
    adapter: AdapterConfig
    seed: int
    rows_per_shard: int


def resolve(config: RunConfig, mesh: Mesh) -> ResolvedRun:
    """Resolve the settings that depend on the devices.

    Raises:
        UserError: if the mesh axes do not divide the dimensions they shard.
    """
    data = config.data
    return resolve_step(
        mesh,
        config.model,
        config.optimizer,
        config.training,
        sequence_length=data.sequence_length,
        document_mask=data.document_mask,
        adapter=config.adapter,
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
    adapter: AdapterConfig | None = None,
    seed: int = 0,
) -> ResolvedRun:
    """Like `resolve`, for a step that is not part of a run, such as in a benchmark.

    >>> run = resolve_step(mesh, model, optimizer, TrainingConfig(steps=1, batch_size=8), sequence_length=2048)
    >>> step = make_train_step(run)

    Raises:
        UserError: if the mesh axes do not divide the dimensions they shard.
    """
    check_fit(mesh, model, training)
    adapter = adapter or AdapterConfig()
    axes, kind = dict(mesh.shape), mesh.devices.flat[0].device_kind
    rows = training.batch_size // (training.gradient_accumulation_steps * axes["data"] * axes["fsdp"])
    remat, attention = training.remat, model.attention
    if remat == "auto":
        remat = choose_remat(model, adapter, rows * sequence_length, axes["fsdp"], axes["tensor"], kind)
    if attention == "auto":
        attention = choose_backend(kind, sequence_length, model.head_dim, model.dtype)
    return ResolvedRun(
        mesh=mesh,
        model=replace(model, attention=attention),
        optimizer=with_decay(optimizer, training.steps),
        training=replace(training, remat=remat),
        sequence_length=sequence_length,
        document_mask=document_mask,
        adapter=adapter,
        seed=seed,
        rows_per_shard=rows,
    )


def with_steps(config: RunConfig, rows_per_epoch: Fraction) -> RunConfig:
    """The config with `training.steps` instead of `training.epochs`, and with the `decay_steps` that 0 stands for."""
    training = config.training
    if training.epochs is not None:
        steps = math.ceil(Fraction(str(training.epochs)) * rows_per_epoch / training.batch_size)
        training = replace(training, steps=steps, epochs=None)
    return replace(config, training=training, optimizer=with_decay(config.optimizer, training.steps))


def with_decay(optimizer: OptimizerConfig, steps: int) -> OptimizerConfig:
    """The settings for a run of this many steps: `decay_steps` 0 means until its end."""
    return replace(optimizer, decay_steps=optimizer.decay_steps or max(1, steps - optimizer.warmup_steps))


def with_trainable_tokens(run: ResolvedRun, base: Tokenizer | None, tokenizer: Tokenizer) -> ResolvedRun:
    """The run with the ids that `trainable_tokens: null` stands for: those that the base's tokenizer lacks.

    Args:
        run: a run with an adapter.
        base: the tokenizer of the model below the adapter, if it has one.
        tokenizer: the tokenizer of the data.

    Raises:
        UserError: if the data's special tokens of fill-in-the-middle are new and would not be trained.
    """
    sentinels = [tokenizer.id_of(token) for token in TOKENS] if LAYOUT_FILE in tokenizer.metadata else []
    new = sentinels
    if base is not None and tokenizer.extends(base):
        new = list(range(base.vocab_size, tokenizer.vocab_size))
        sentinels = [id for id in sentinels if id in new]
    ids = new if run.adapter.trainable_tokens is None else run.adapter.trainable_tokens
    require(
        set(sentinels) <= set(ids),
        f"adapter.trainable_tokens: must include {sentinels}, the special tokens of fill-in-the-middle, which "
        "are new to the model of init_from; null includes them",
    )
    return replace(run, adapter=replace(run.adapter, trainable_tokens=ids))


def resolved_config(config: RunConfig) -> RunConfig:
    """Return the config resolved for the local devices; unchanged, with a warning, if its mesh does not fit them."""
    try:
        run = resolve(config, make_mesh(config.mesh))
    except UserError as error:
        log.warning(f"{error}; showing mesh, training.remat and model.attention unresolved")
        return config
    training = replace(config.training, remat=run.training.remat)  # the steps of epochs depend on the data
    return replace(config, model=run.model, training=training, mesh=MeshConfig(**dict(run.mesh.shape)))
