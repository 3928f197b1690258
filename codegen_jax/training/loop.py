"""The training loop: start or resume, then step, log, validate and save."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from codegen_jax.allocator import keep_freed_blocks
from codegen_jax.compilation import use_compilation_cache
from codegen_jax.config import RunConfig
from codegen_jax.config_file import in_yaml
from codegen_jax.data.batches import Batches, prefetch
from codegen_jax.data.sources import make_order, open_sources, rows_per_epoch
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.distributed import is_first, joined, log_once
from codegen_jax.errors import Preempted, require
from codegen_jax.model.codegen import Params
from codegen_jax.progress import Progress
from codegen_jax.sharding import make_mesh
from codegen_jax.training.checkpoint import Checkpoints, check_output
from codegen_jax.training.clock import Clock
from codegen_jax.training.frozen import dense_bytes, load_frozen
from codegen_jax.training.metrics import MetricsLog, check_wandb
from codegen_jax.training.preemption import Preemption, watch_preemption
from codegen_jax.training.records import Records, forgiven
from codegen_jax.training.reporter import Reporter, announce
from codegen_jax.training.resolve import ResolvedRun, resolve, with_steps, with_trainable_tokens
from codegen_jax.training.step import (
    TrainState,
    abstract_batch,
    abstract_state,
    batch_sharding,
    init_state,
    make_train_step,
)
from codegen_jax.training.summary import write_summary
from codegen_jax.training.validation import make_sampling, make_validation
from codegen_jax.weights.adapter import AdaptedWeights
from codegen_jax.weights.adapter_layout import from_peft
from codegen_jax.weights.base import Weights, load_params, local_bytes
from codegen_jax.weights.generation_config import GenerationConfig
from codegen_jax.weights.open import mp_num_of, open_adapter, open_model
from codegen_jax.weights.run_folder import complete_checkpoints
from codegen_jax.weights.sampled_hash import sampled_hash

log = logging.getLogger(__name__)


def train(config: RunConfig) -> None:
    """Start or resume the training run that `config` describes; its output goes to `config.output`.

    It needs the process to itself: it handles SIGTERM and Ctrl-C, and caches compiled programs on disk.

    Raises:
        UserError: if the data, mesh, output folder or checkpoint does not match the config (before the first step), if
            too many consecutive steps were skipped, or if the last checkpoint can't be written.
        Preempted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    clock = Clock()
    with clock.on("joining"):
        processes = ExitStack()
        processes.enter_context(joined(config.distributed))
    with processes:
        _train(config, clock)


def _train(config: RunConfig, clock: Clock) -> None:
    check_wandb(config)
    with clock.on("data"):
        sources, tokenizer = open_sources(config.data)
        require(
            tokenizer.vocab_size <= config.model.vocab_size,
            f"model.vocab_size: must be at least {tokenizer.vocab_size}, the vocabulary size of the tokenizer of "
            f"{sources[0].files.folder}, got {config.model.vocab_size}",
        )
        config = with_steps(config, rows_per_epoch(sources))
        order = make_order(config, sources)
    with clock.on("devices"):
        if config.adapter.rank:  # measured for adapters only
            keep_freed_blocks(of_any_size=True)
        use_compilation_cache()
        mesh = make_mesh(config.mesh)
        run = resolve(config, mesh)
    with jax.set_mesh(mesh), watch_preemption() as preemption, ExitStack() as opened:
        with clock.on("state"):
            data = {source.name: source.files.manifest.identity for source in sources}
            check_output(config, data)  # before reading the weights of init_from
            initial = Initial()
            initial_weights = find_initial_weights(config)
            if initial_weights is not None:
                if is_same_tokenizer(initial_weights, tokenizer, sources[0].files):
                    initial.generation_config = initial_weights.generation_config
                    tokenizer = tokenizer.with_metadata_of(initial_weights.tokenizer)
                if run.adapter.rank:
                    run = with_trainable_tokens(run, initial_weights.tokenizer, tokenizer)
                log_once(f"starting from the weights of {initial_weights.source}")
                # read them before touching the output folder, since this may find damage or NaN
                is_resumed = bool(complete_checkpoints(config.output))
                load_initial(run, initial_weights, initial, config.init_adapters, is_resumed)
            checkpoints = opened.enter_context(
                closing(Checkpoints(config, tokenizer, data, initial.generation_config, initial.adapter))
            )
            state = start(run, checkpoints, initial)
            del initial  # the state has its own copy
        first = int(state.step)
        announce(run, sources, first)
        records = Records(config.output) if is_first() else None
        log = MetricsLog(records.folder, first, config) if records else None
        with clock.on("compile"):
            train_step = make_train_step(run)
            lowered = train_step.lower(abstract_state(run), abstract_batch(run))  # pyright: ignore
            compiled = lowered.compile()
        epochs = lambda step: {f"epoch{s.suffix}": n for s, n in zip(sources, order.epochs(step))}
        loop = Loop(
            config=config,
            # jax 0.10 rejects the layout of 4-bit arrays in a call of `compiled`, which this call uses anyway
            train_step=train_step if run.adapter.quantize else compiled,
            batches=Batches([source.rows for source in sources], order, batch_sharding(mesh)),
            validate=make_validation(run, sources),
            sample=make_sampling(run, tokenizer),
            checkpoints=checkpoints,
            reporter=Reporter(config, log, clock, first, epochs),
            clock=clock,
            preemption=preemption,
            records=records,
        )
        outcome = "finished"
        try:
            loop.run(state, first)
        except BaseException as error:
            outcome = str(error) or type(error).__name__
            raise
        finally:
            loop.reporter.close()
            if records and log:
                log.close()
                with forgiven(records.output):
                    write_summary(config, records.folder, clock, loop.reporter.reported, outcome)
                records.upload()
                log_once(f"summary: {config.output}/summary.md")


def find_initial_weights(config: RunConfig) -> Weights | None:
    """The weights that a run starts from, or trains an adapter for.

    None if it starts from scratch, or already has checkpoints of all weights.

    Raises:
        UserError: if init_from is not a model, or has a different architecture.
    """
    if config.init_from is None or (complete_checkpoints(config.output) and not config.adapter.rank):
        return None
    weights = open_model(config.init_from, config=config.model, adapters=config.init_adapters)
    # these may differ, since they do not affect the weights' shapes: an embedding bias starts at 0 or is folded in
    free = ("n_positions", "embedding_bias", "init", "dtype", "attention")
    expected = replace(weights.config, **{name: getattr(config.model, name) for name in free})
    require(
        config.model == expected,
        f"model: {weights.source} in init_from has a different architecture; use model: {in_yaml(expected)}",
    )
    return weights


@dataclass
class Initial:
    """What a run starts from if it has no checkpoints.

    Attributes:
        params: the parameters to train; None: random ones.
        frozen: the parameters below an adapter; None without one.
        generation_config: that of the model.
        adapter: what checkpoints record about an adapter; see `Run`.
    """

    params: Params = None
    frozen: Params = None
    generation_config: GenerationConfig = field(default_factory=dict)
    adapter: dict[str, Any] | None = None


def load_initial(
    run: ResolvedRun, weights: Weights, initial: Initial, init_adapters: list[str], is_resumed: bool
) -> None:
    """Load the weights that a run starts from, and the adapter, if it goes on with one."""
    abstract = abstract_state(run)
    total = dense_bytes(run) if run.adapter.rank else local_bytes(abstract.params)
    with Progress("loading the weights", total, "B", shown=is_first()) as progress:
        if not run.adapter.rank:
            initial.params = load_params(weights, abstract.params, progress.update)
            return
        initial.frozen, prints = load_frozen(run, weights, progress.update)
    initial.adapter = {
        "trainable_tokens": run.adapter.trainable_tokens,
        "mp_num": mp_num_of(weights),
        "hash": sampled_hash(weights),
        "on_adapters": isinstance(weights, AdaptedWeights),
        # merged weights depend on how a machine rounds products
        "base": {} if isinstance(weights, AdaptedWeights) else prints,
    }
    if run.adapter.init_from is not None and not is_resumed:
        found = open_adapter(run.adapter.init_from, run.model, mp_num_of(weights), init_adapters)
        arrays = from_peft(found.for_model(weights), run.model, run.adapter)
        put = lambda x, like: jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])
        initial.params = jax.tree.map(put, arrays, abstract.params)


def is_same_tokenizer(weights: Weights, tokenizer: Tokenizer, files: TokenFiles) -> bool:
    """Whether the token files' tokenizer is that of the weights, or extends it; if not, log a warning."""
    theirs = weights.tokenizer
    if theirs is None or tokenizer.extends(theirs):
        return True
    if is_first():
        log.warning(
            f"init_from: {weights.source} has tokenizer {theirs.fingerprint}, but {files.folder} was made with "
            f"{tokenizer.fingerprint}, in which ids have other meanings; prepare the data with the model's tokenizer"
        )
    return False


def start(run: ResolvedRun, checkpoints: Checkpoints, initial: Initial) -> TrainState:
    """The initial state: from the run's newest checkpoint, else from `initial`."""
    state = checkpoints.restore(abstract_state(run))
    return init_state(run, initial.params, initial.frozen) if state is None else state._replace(frozen=initial.frozen)


@dataclass
class Loop:
    """The training loop with all its dependencies; created by `train`."""

    config: RunConfig
    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, Any]]]
    batches: Callable[[int], jax.Array]
    validate: Callable[[TrainState], dict[str, float]] | None
    sample: Callable[[TrainState], dict[str, str]] | None
    checkpoints: Checkpoints
    reporter: Reporter
    clock: Clock
    preemption: Preemption
    records: Records | None  # in process 0 only
    pending: tuple[int, dict[str, Any]] | None = None  # the last step and its metrics, not reported yet

    def run(self, state: TrainState, first: int) -> None:
        """Run steps first + 1 to training.steps.

        Steps count from 1: step n trains on batch n - 1 with learning rate schedule(n - 1).
        """
        training = self.config.training
        self.reporter.restart_clock()
        self.preemption.training = True
        for step, batch in enumerate(self._batches(range(first, training.steps)), first + 1):
            self._trace(step)
            state, metrics = self.train_step(state, batch)
            # this step is already running, so fetching the metrics of the previous one does not stall the device
            self._report()
            self.pending = (step, metrics)

            stopping, last = self.preemption.reached(step), step == training.steps
            saves = stopping or last or step % self.config.checkpoint.save_every == 0
            validates = (saves or step % training.eval_every == 0) and not stopping  # little time after SIGTERM
            loss = self._validate(step, state) if validates else None
            if saves:
                self._report()
                with self.clock.on("checkpoint"):
                    self.checkpoints.save(state, loss)
                if self.records:
                    self.records.upload()
                self.reporter.restart_clock()
            else:
                self.checkpoints.check(state)
            if stopping or last:
                with self.clock.on("checkpoint"):
                    self.checkpoints.finish(state)
            if stopping and not last:
                raise Preempted(self.preemption.signal, step)

    def _batches(self, steps: range) -> Iterator[jax.Array]:
        """Yield each step's batch; the time that devices wait for it is attributed to data."""
        batches = prefetch(self.batches, steps)
        for _ in steps:
            began = time.perf_counter()
            batch = next(batches)
            if self.pending is None or self.pending[1]["loss"].is_ready():
                self.clock.spent["data"] += time.perf_counter() - began
            yield batch

    def _report(self) -> None:
        """Report the pending step.

        Raises:
            UserError: if too many consecutive steps up to this one were skipped.
        """
        if self.pending is None:
            return
        step, metrics = self.pending[0], jax.device_get(self.pending[1])
        self.pending = None
        if not self.reporter.reported:
            log_once(f"first step done after {self.clock.seconds:.1f} s: {self.clock}")
        self.reporter.step(step, metrics)
        bad = int(metrics["bad_steps"])
        require(
            bad < self.config.training.max_bad_steps,
            f"training.max_bad_steps: steps {step - bad + 1} to {step} were all skipped, the last with loss "
            f"{metrics['loss']:.4g} and gradient norm {metrics['grad_norm']:.4g}; inspect the data with codegen-jax "
            f"data show CONFIG --step {step} and skip it with --data.skip_steps [[{step - bad + 1},{step}]]; if the "
            "weights have diverged, return to an earlier checkpoint or lower optimizer.learning_rate",
        )

    def _validate(self, step: int, state: TrainState) -> float | None:
        """Validate and sample; return the validation loss, if any."""
        self._report()
        values: dict[str, float] = {}
        with self.clock.on("validation"):
            if self.validate is not None:
                values = self.validate(state)
                self.reporter.validation(step, values)
            if self.sample is not None:
                self.reporter.samples(step, self.sample(state))
        self.reporter.restart_clock()
        return values.get("validation_loss")

    def _trace(self, step: int) -> None:
        """Start or stop the profiler before a step."""
        profile = self.config.profile
        if not self.records or not profile.steps:
            return
        if step in (profile.start, profile.start + profile.steps):
            self._report()  # waits for the previous step
            with self.clock.on("profile"):
                if step == profile.start:
                    jax.profiler.start_trace(self.records.folder / "profile")
                else:
                    jax.profiler.stop_trace()
            self.reporter.restart_clock()
