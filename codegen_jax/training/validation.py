"""Validation during training: the loss on fixed validation sets, and completions of fixed prompts."""

from collections.abc import Callable
from functools import partial

import jax

from codegen_jax.data.batches import validation_batches
from codegen_jax.data.sources import Rows, Source
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.inference.generator import Generator
from codegen_jax.model.adapter import merged
from codegen_jax.training.loss import perplexity
from codegen_jax.training.resolve import ResolvedRun
from codegen_jax.training.step import TrainState, batch_sharding, make_eval_step


def make_validation(run: ResolvedRun, sources: list[Source]) -> Callable[[TrainState], dict[str, float]] | None:
    """Return a function from a state to validation_loss (nats per token), validation_perplexity and bits_per_byte.

    For a mixture, each source has its own values (validation_loss/NAME etc.), and validation_loss is their weighted
    mean. None if there is no validation data.
    """
    validated = [(s, s.validation) for s in sources if s.validation is not None]
    if not validated:
        return None
    eval_step = make_eval_step(run)
    training = run.training

    def loss_of(state: TrainState, rows: Rows) -> float:
        batches = validation_batches(rows, training.batch_size, batch_sharding(run.mesh), training.eval_batches)
        sums, tokens = zip(*(eval_step(state.params, batch, state.frozen) for batch in batches))
        return sum(map(float, sums)) / sum(map(float, tokens))

    def validate(state: TrainState) -> dict[str, float]:
        values: dict[str, float] = {}
        mean = 0.0
        for source, rows in validated:
            loss = loss_of(state, rows)
            mean += loss * source.weight / sum(s.weight for s, _ in validated)
            values |= {
                f"validation_loss{source.suffix}": loss,
                f"validation_perplexity{source.suffix}": perplexity(loss),
                f"bits_per_byte{source.suffix}": rows.files.manifest.bits_per_byte(loss),
            }
        return {"validation_loss": mean} | values

    return validate


def make_sampling(run: ResolvedRun, tokenizer: Tokenizer) -> Callable[[TrainState], dict[str, str]] | None:
    """Return a function from a state to greedy completions by prompt; None if there are no prompts."""
    prompts = run.training.sample_prompts
    if not prompts:
        return None

    merge = jax.jit(partial(merged, run.adapter, run.model.dtype)) if run.adapter.rank else None

    def samples(state: TrainState) -> dict[str, str]:
        params = state.params if merge is None else merge(state.params, state.frozen)
        generator = Generator.of_params(run.model, params, tokenizer, run.mesh)
        completions = generator.complete(prompts, max_new_tokens=run.training.sample_tokens, temperature=0)
        return {completion.prompt: completion.completion for completion in completions}

    return samples
