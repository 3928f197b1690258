"""The training step: a pure function of (state, batch), jitted with shardings and with the state donated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from codegen_jax.chips import Chip, chip_of
from codegen_jax.data.rows import ids_of, starts_of, targets_of
from codegen_jax.model.adapter import Adapted, abstract_adapter, adapter_axes, init_adapter
from codegen_jax.model.codegen import Params, abstract_params, gathered, init_params, module, param_axes
from codegen_jax.model.precision import products_of
from codegen_jax.sharding import ROWS, shard_map, spec, sum_over_rows, tree_shardings
from codegen_jax.training.frozen import abstract_frozen, frozen_axes, with_sharding
from codegen_jax.training.guard import Guard, judge, update_if
from codegen_jax.training.loss import Loss, count_targets, next_token_loss
from codegen_jax.training.optimizer import learning_rate_schedule, make_optimizer
from codegen_jax.training.resolve import ResolvedRun

# Options of the TPU compiler with which collectives run beside computation. Without the first one, gathers block v4.
# The others move collectives to SparseCores, where a chip has some that the compiler can use: as compiled, 16B on
# v5p-512 takes 2.28 s per step with them and 2.52 s without. On v4 they would make gathers block the chip again.
ASYNCHRONOUS_GATHERS = {"xla_enable_async_all_gather": "true"}
ON_SPARSE_CORES = {
    f"xla_tpu_enable_sparse_core_collective_offload_{collective}": "true"
    for collective in ("all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter", "all_reduce")
} | {  # as in MaxText (benchmarks/xla_flags_library.py), which says that they are needed
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}


class TrainState(NamedTuple):
    """Everything a step updates, and the weights below an adapter.

    Attributes:
        step: number of completed steps, int32.
        params: float32 parameters that are trained: the model's, or the adapter's.
        opt_state: optax state with float32 moments.
        guard: statistics for skipping bad steps.
        frozen: the model's parameters if an adapter is trained (see `abstract_frozen`), else None; not in checkpoints.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    guard: Guard
    frozen: Params = None


def compiler_options(device: Any) -> dict[str, str] | None:
    """Options for the compiler of this device."""
    return tpu_options(chip_of(device.device_kind)) if device.platform == "tpu" else None


def tpu_options(chip: Chip | None) -> dict[str, str]:
    """Options for the compiler of this kind of TPU."""
    return ASYNCHRONOUS_GATHERS | (ON_SPARSE_CORES if chip and chip.sparse_cores else {})


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows sharded over data and fsdp; time unsharded."""
    return NamedSharding(mesh, spec("batch", None))


def trained_axes(run: ResolvedRun) -> Params:
    """Logical axes of the parameters that are trained."""
    return adapter_axes(run.model, run.adapter) if run.adapter.rank else param_axes(run.model)


def abstract_state(run: ResolvedRun) -> TrainState:
    """Shapes, dtypes and shardings of the state: for initialization, restore and ahead-of-time compilation."""
    params = abstract_adapter(run.model, run.adapter) if run.adapter.rank else abstract_params(run.model)
    shardings = tree_shardings(run.mesh, trained_axes(run))
    optimizer = make_optimizer(run.optimizer)
    replicated = NamedSharding(run.mesh, P())

    opt_state = optax.tree.map_params(
        optimizer,
        with_sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,  # each moment is sharded like its parameter
        transform_non_params=lambda x: with_sharding(x, replicated),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    params = jax.tree.map(with_sharding, params, shardings)
    guard = jax.tree.map(lambda x: with_sharding(x, replicated), jax.eval_shape(Guard.new))
    return TrainState(step, params, opt_state, guard, abstract_frozen(run))  # pyright: ignore[reportArgumentType]


def abstract_batch(run: ResolvedRun) -> jax.ShapeDtypeStruct:
    """A batch's shape, dtype and sharding."""
    shape = (run.training.batch_size, run.sequence_length + 1)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(run.mesh))


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(run: ResolvedRun, params: Params = None, frozen: Params = None) -> TrainState:
    """Create a fresh state on its shards, identical on every mesh.

    Args:
        run: the run.
        params: the parameters to train; None: random ones.
        frozen: the parameters below an adapter.
    """

    def init(params: Params, embedding_VD: jax.Array | None) -> TrainState:
        if params is None and run.adapter.rank:
            assert embedding_VD is not None
            params = init_adapter(run.model, run.adapter, run.seed, embedding_VD)
        elif params is None:
            params = init_params(run.model, run.seed)
        return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(run.optimizer).init(params), Guard.new())

    abstract = abstract_state(run)._replace(frozen=None)
    with jax.set_mesh(run.mesh):
        state = jax.jit(init, out_shardings=shardings_of(abstract))(params, frozen and frozen["embedding"])
    return state._replace(frozen=frozen)


def documents_of(rows_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segment ids and positions, int32 [B, T]: both restart where a document starts, positions at 0."""
    T = rows_BT.shape[1]
    starts_BT = starts_of(rows_BT)
    first_BT = jax.lax.cummax(jnp.where(starts_BT, jnp.arange(T), 0), axis=1)
    return jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32), jnp.arange(T) - first_BT


def batch_loss(
    run: ResolvedRun,
    params: Params,
    rows_BT: jax.Array,
    *,
    scale: jax.Array | float,
    z_loss: float,
    frozen: Params = None,
    dropout_keys_B: jax.Array | None = None,
) -> Loss:
    """Loss of rows as in data/rows.py; the first of sequence_length + 1 tokens is input only, the last target only."""
    adapted = Adapted(run.adapter, params, dropout_keys_B) if run.adapter.rank else None
    model = module(run.model, frozen if adapted else params)
    inputs_BT, targets_BT = ids_of(rows_BT[:, :-1]), targets_of(rows_BT[:, 1:])
    segment_ids_BT, positions_BT = documents_of(rows_BT[:, :-1]) if run.document_mask else (None, None)
    x_BTD = model.hidden(
        inputs_BT,
        positions_BT=positions_BT,
        segment_ids_BT=segment_ids_BT,
        remat=run.training.remat,
        updates=adapted,
    )
    head_DV = gathered(model.head, x_BTD.dtype)
    if adapted:
        x_BTD, head_DV = adapted.head(x_BTD, head_DV)
    return next_token_loss(x_BTD, head_DV, model.head_bias[...], targets_BT, scale=scale, z_loss=z_loss)


def accumulated_gradients(
    run: ResolvedRun, params: Params, rows_BT: jax.Array, frozen: Params = None, step: jax.Array | int = 0
) -> tuple[Loss, Params]:
    """Mean loss over the batch's trained tokens and its gradient, accumulated over micro-batches in float32.

    Each device computes on its own rows. Weight gathers and gradient sums are explicit (see `sharding`), not chosen by
    XLA; the tensor axis is left to XLA.
    """
    axes = trained_axes(run)
    micro_batches = run.training.gradient_accumulation_steps

    def on_local_rows(params: Params, frozen: Params, rows_BT: jax.Array, keys_B: Any) -> tuple[Loss, Params]:
        scale = 1.0 / sum_over_rows(count_targets(rows_BT[:, 1:]))

        def loss(params: Params, rows_BT: jax.Array, keys_B: Any) -> tuple[jax.Array, Loss]:
            z_loss = run.training.z_loss
            share = batch_loss(run, params, rows_BT, scale=scale, z_loss=z_loss, frozen=frozen, dropout_keys_B=keys_B)
            return share.total, share

        def add_micro_batch(sums: tuple[Loss, Params], part: Any) -> tuple[tuple[Loss, Params], None]:
            gradients, share = jax.grad(loss, has_aux=True)(params, *part)
            # without this barrier, libtpu 0.0.52 fails to move reductions out of a loop that adds their results
            gradients = jax.lax.optimization_barrier(gradients)
            return jax.tree.map(jnp.add, sums, (share, gradients)), None

        if micro_batches == 1:
            gradients, share = jax.grad(loss, has_aux=True)(params, rows_BT, keys_B)
        else:
            zeros = (Loss(*jnp.zeros(2)), jax.tree.map(jnp.zeros_like, params))
            parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (rows_BT, keys_B))
            share, gradients = jax.lax.scan(add_micro_batch, zeros, parts)[0]
        return sum_over_rows(share), jax.tree.map(sum_over_rows, gradients, axes)

    # the kernels' backward rules are traced here, outside the network's own precision context
    with products_of(run.model.dtype):
        in_axes = (axes, frozen_axes(run), ("batch", None), ("batch",))
        on_rows = shard_map(on_local_rows, in_axes, ((), axes), over=ROWS)
        return on_rows(params, frozen, rows_BT, dropout_keys(run, step))


def dropout_keys(run: ResolvedRun, step: jax.Array | int) -> jax.Array | None:
    """A random key for each row of a step's batch, which depends on neither mesh nor micro-batches."""
    if not run.adapter.dropout:
        return None
    of_step = jax.random.fold_in(jax.random.key(run.seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(of_step, row))(jnp.arange(run.training.batch_size))


def make_train_step(run: ResolvedRun) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted update: (state, int32 rows [batch_size, sequence_length + 1]) to (new state, metrics).

    The given state is donated. Metrics are scalars: loss (z-loss included), cross_entropy (nats per token), grad_norm
    (before clipping), learning_rate (as applied), bad_steps (consecutive skips) and skipped (whole run). Call it
    under `jax.set_mesh(run.mesh)`.
    """
    optimizer, schedule = make_optimizer(run.optimizer), learning_rate_schedule(run.optimizer)

    def train_step(state: TrainState, rows_BT: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradients = accumulated_gradients(run, state.params, rows_BT, state.frozen, state.step)
        grad_norm = optax.tree.norm(gradients)
        good, guard = judge(state.guard, loss.total, grad_norm, run.training.spike_sigmas)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, good=good)
        params = update_if(good, optax.apply_updates(state.params, updates), state.params)
        metrics = {
            "loss": loss.total,
            "cross_entropy": loss.cross_entropy,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "bad_steps": guard.bad_steps,
            "skipped": guard.skipped,
        }
        return TrainState(state.step + 1, params, opt_state, guard, state.frozen), metrics

    state_shardings = shardings_of(abstract_state(run))
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding(run.mesh)),
        out_shardings=(state_shardings, NamedSharding(run.mesh, P())),  # every host reads the metrics
        donate_argnums=0,
        compiler_options=compiler_options(run.mesh.devices.flat[0]),
    )


def make_eval_step(run: ResolvedRun) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the jitted validation: (params, rows, frozen) to summed cross-entropy and number of trained tokens."""

    def on_local_rows(params: Params, rows_BT: jax.Array, frozen: Params) -> tuple[jax.Array, jax.Array]:
        loss = batch_loss(run, params, rows_BT, scale=1.0, z_loss=0.0, frozen=frozen)
        return sum_over_rows((loss.cross_entropy, count_targets(rows_BT[:, 1:])))

    def eval_step(params: Params, rows_BT: jax.Array, frozen: Params) -> tuple[jax.Array, jax.Array]:
        in_axes = (trained_axes(run), ("batch", None), frozen_axes(run))
        return shard_map(on_local_rows, in_axes, ((), ()), over=ROWS)(params, rows_BT, frozen)

    abstract = abstract_state(run)
    shardings = (shardings_of(abstract.params), batch_sharding(run.mesh), shardings_of(abstract.frozen))
    return jax.jit(eval_step, in_shardings=shardings, out_shardings=NamedSharding(run.mesh, P()))
