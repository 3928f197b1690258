"""The training loop: start or resume, then step, log, validate, save."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from codegen_jax.chips import chip_of
from codegen_jax.config import RunConfig
from codegen_jax.conversion.models import open_model
from codegen_jax.conversion.native import whole_checkpoints
from codegen_jax.conversion.weights import Weights, load_params
from codegen_jax.data.batches import Batches, prefetch, validation_batches
from codegen_jax.data.sources import Source, make_order, open_sources
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.errors import require
from codegen_jax.model.codegen import Params
from codegen_jax.sharding import check_fit, make_mesh
from codegen_jax.training.checkpoint import Checkpoints
from codegen_jax.training.metrics import MetricsLog, plot_loss
from codegen_jax.training.step import (
    Metrics,
    TrainState,
    abstract_state,
    batch_sharding,
    init_state,
    make_eval_step,
    make_train_step,
)


def train(config: RunConfig) -> None:
    """Run, or go on with, the training that `config` describes; everything it makes is in `config.output`.

    Raises:
        UserError: for data, mesh, output folder or checkpoint that do not fit the config; before the first step.
    """
    sources, tokenizer = open_sources(config.data)
    require(
        tokenizer.vocab_size <= config.model.vocab_size,
        f"model.vocab_size: {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} ids of the tokenizer "
        f"of {sources[0].files.folder}",
    )
    order = make_order(config, sources)
    mesh = make_mesh(config.mesh)
    check_fit(config, mesh)
    evaluate = make_evaluation(config, mesh, sources, tokenizer.eos_id)
    initial_weights = find_initial_weights(config)
    data = {source.name: source.files.manifest.identity for source in sources}
    checkpoints = Checkpoints(config, tokenizer, data)

    with jax.set_mesh(mesh):
        state, first = start(config, mesh, checkpoints, initial_weights)
        log = MetricsLog(config.output, first)
        try:
            batches = Batches([source.windows for source in sources], order, batch_sharding(mesh))
            train_step = make_train_step(config, mesh, tokenizer.eos_id)
            epochs = lambda step: {f"epoch{s.suffix}": n for s, n in zip(sources, order.epochs(step))}
            reporter = Reporter(config, log, first, epochs)
            run_steps(config, train_step, state, first, batches, evaluate, checkpoints, reporter)
        finally:
            checkpoints.close()
            log.close()
    print(f"loss curve: {plot_loss(config.output)}")


def find_initial_weights(config: RunConfig) -> Weights | None:
    """The weights that a run starts from; None if it has checkpoints of its own already, or starts from scratch.

    Raises:
        UserError: if init_from is no model, or one of another network.
    """
    if config.init_from is None or whole_checkpoints(config.output):
        return None
    weights = open_model(config.init_from, config=config.model)
    ours, theirs = vars(config.model), vars(weights.config)
    # these do not shape the weights: an embedding bias starts at 0 or is folded in
    for name in sorted(ours.keys() - {"init", "dtype", "attention", "n_positions", "embedding_bias"}):
        message = f"model.{name}: {ours[name]}, but init_from {weights.source} has {theirs[name]}"
        require(ours[name] == theirs[name], message)
    return weights


def start(
    config: RunConfig, mesh: Mesh, checkpoints: Checkpoints, initial_weights: Weights | None
) -> tuple[TrainState, int]:
    """The first state and its step: 1. the run's own newest checkpoint, 2. the weights of init_from, 3. random."""
    abstract = abstract_state(config, mesh)
    step = checkpoints.latest_step()
    if step is not None:
        print(f"resuming {config.output} after step {step}")
        return checkpoints.restore(step, abstract), step
    if initial_weights is not None:
        print(f"starting from the weights of {initial_weights.source}")
        return init_state(config, mesh, load_params(initial_weights, abstract.params)), 0
    return init_state(config, mesh), 0


def run_steps(
    config: RunConfig,
    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]],
    state: TrainState,
    first: int,
    batches: Callable[[int], jax.Array],
    evaluate: Callable[[Params], dict[str, float]] | None,
    checkpoints: Checkpoints,
    reporter: "Reporter",
) -> None:
    """Steps first+1 .. steps, numbered from 1; step n trains on batch n-1 with learning rate number n-1."""
    training = config.training
    pending = None
    for step, batch in enumerate(prefetch(batches, range(first, training.steps)), first + 1):
        state, metrics = train_step(state, batch)
        # this step is on its way, so the numbers of the one before can be fetched without keeping the device waiting
        if pending is not None:
            reporter.step(*pending)
        pending = (step, metrics)

        saves = step % config.checkpoint.save_every == 0 or step == training.steps
        validates = evaluate is not None and (saves or step % training.eval_every == 0)
        if saves or validates:
            reporter.step(*pending)
            pending = None
            validation: dict[str, float] = {}
            if evaluate is not None:
                validation = evaluate(state.params)
                reporter.validation(step, validation)
            if saves:
                checkpoints.save(state, validation.get("validation_loss"))
            reporter.restart_clock()
    reporter.close()


def make_evaluation(
    config: RunConfig, mesh: Mesh, sources: list[Source], eos_id: int
) -> Callable[[Params], dict[str, float]] | None:
    """A function from parameters to validation_loss (nats a token), validation_perplexity and bits_per_byte.

    Of a mixture, each source has its own, as validation_loss/NAME and so on; validation_loss itself is then their mean
    by weight. None if there is nothing to validate on.
    """
    validated = [(s, s.validation) for s in sources if s.validation is not None]
    if not validated:
        return None
    eval_step = make_eval_step(config, mesh, eos_id)
    training = config.training

    def loss_of(params: Params, files: TokenFiles) -> float:
        windows = Windows(files, config.data.sequence_length)
        rows = validation_batches(windows, training.batch_size, batch_sharding(mesh), training.eval_batches)
        sums, tokens = zip(*(eval_step(params, batch) for batch in rows))
        return sum(map(float, sums)) / sum(map(float, tokens))

    def evaluate(params: Params) -> dict[str, float]:
        values: dict[str, float] = {}
        mean = 0.0
        for source, files in validated:
            loss = loss_of(params, files)
            mean += loss * source.weight / sum(s.weight for s, _ in validated)
            values |= {
                f"validation_loss{source.suffix}": loss,
                f"validation_perplexity{source.suffix}": math.exp(min(loss, 700.0)),
                f"bits_per_byte{source.suffix}": loss / math.log(2) * files.manifest.tokens / files.manifest.text_bytes,
            }
        return {"validation_loss": mean} | values

    return evaluate


class Reporter:
    """Turns steps into lines, log entries and a progress bar (none where stderr is not a terminal)."""

    def __init__(self, config: RunConfig, log: MetricsLog, first: int, epochs: Callable[[int], dict[str, float]]):
        self.config, self.log, self.epochs = config, log, epochs
        self.tokens_per_step = config.training.batch_size * config.data.sequence_length
        chip = chip_of(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops * jax.device_count() if chip else None
        self.bar = tqdm(total=config.training.steps, initial=first, unit="step", disable=None, dynamic_ncols=True)
        self.began: float | None = None  # no clock until the first step, which compiles, is done
        self.steps = 0
        self.launched = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave out of tokens/s what has passed since the last step: compilation, validation, saving."""
        self.began, self.steps = time.perf_counter(), 0

    def step(self, step: int, metrics: Any) -> None:
        training = self.config.training
        self.bar.update()
        self.steps += 1
        if self.began is None:
            jax.block_until_ready(metrics)
            tqdm.write(f"first step, compilation included: {time.perf_counter() - self.launched:.1f} s")
            self.restart_clock()
        if step % training.log_every and step not in (1, training.steps):
            return
        values = {name: float(value) for name, value in metrics.items()}
        values["perplexity"] = math.exp(min(values.pop("cross_entropy"), 700.0))
        values |= self.epochs(step)
        line = f"step {step:>6}  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
        line += f"  grad norm {values['grad_norm']:.2f}"
        if self.steps and self.began is not None:
            values["tokens_per_second"] = rate = self.steps * self.tokens_per_step / (time.perf_counter() - self.began)
            line += f"  {rate:,.0f} tokens/s"
            if self.peak:
                values["mfu"] = rate * self.config.model.flops_per_token(self.config.data.sequence_length) / self.peak
                line += f"  MFU {values['mfu']:.1%}"
            self.restart_clock()
        self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        self.log.write(step, values)
        tqdm.write(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        self.log.write(step, values)
        for name in values:
            metric, slash, source = name.partition("/")
            if metric == "validation_loss" and f"validation_perplexity{slash}{source}" in values:
                tqdm.write(
                    f"step {step:>6}  {source}{' ' * bool(source)}validation loss {values[name]:.4f}  "
                    f"perplexity {values[f'validation_perplexity{slash}{source}']:.2f}  "
                    f"bits per byte {values[f'bits_per_byte{slash}{source}']:.3f}"
                )

    def close(self) -> None:
        self.bar.close()
