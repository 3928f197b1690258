"""A model's samples of a benchmark's problems, in batches."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import require
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.inference.generate import Generator


def batches(draws: Sequence[Draw], rows: int) -> list[list[Draw]]:
    """Draws in batches of one temperature and at most so many rows."""
    found: list[list[Draw]] = []
    for _, of_temperature in groupby(draws, lambda draw: draw.temperature):
        together = list(of_temperature)
        found += [together[first : first + rows] for first in range(0, len(together), rows)]
    return found


def draw_batch(
    generator: Generator, problems: Sequence[Problem], protocol: Protocol, batch: Sequence[Draw]
) -> list[dict[str, Any]]:
    """The samples asked for, all of one temperature, with what is told of them.

    The text is a function of the model, seed, problem, number and protocol, whatever else is drawn beside it. The last
    digits of the log-probability depend on the shape of the batch, as every sum of floats does; in bfloat16 these are
    coarse enough to turn a token now and then, and so the text.

    Args:
        problems: of the benchmark; a draw has its problem's number among them.
    """
    temperature = batch[0].temperature
    completions = generator.complete(
        [problems[draw.problem].model_prompt for draw in batch],
        seed=[protocol.seed_of(problems[draw.problem], draw.sample) for draw in batch],
        **protocol.options(temperature),
    )
    return [
        {
            "task_id": problems[draw.problem].task_id,
            "completion": completion.completion,
            "sample": draw.sample,
            "temperature": temperature,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "logprob": round(sum(completion.logprobs or []), 3),
        }
        for draw, completion in zip(batch, completions, strict=True)
    ]


def require_room(tokenizer: Tokenizer, context: int, problems: Sequence[Problem], protocol: Protocol) -> None:
    """Raise `UserError` unless every prompt says something, and fits into a model's context with the new tokens."""
    for problem in problems:
        is_empty = f"{problem.task_id}: its prompt is empty; give it one, or leave the problem out"
        require(bool(problem.model_prompt), is_empty)
    lengths = {problem.task_id: len(tokenizer.encode(problem.model_prompt)) for problem in problems}
    task_id = max(lengths, key=lengths.__getitem__)  # the longest, so that what is said to fit fits all
    tokens = lengths[task_id]
    require(
        tokens < context,
        f"{task_id}: its prompt of {tokens} tokens does not fit into the model's context of {context}; "
        "take a model with a longer one, or leave the problem out",
    )
    require(
        tokens + protocol.max_new_tokens <= context,
        f"max_new_tokens: the prompt of {task_id} has {tokens} tokens, and {protocol.max_new_tokens} new "
        f"ones exceed the model's context of {context}; at most {context - tokens} fit",
    )
