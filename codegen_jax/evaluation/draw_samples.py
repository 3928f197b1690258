"""A model's samples of a benchmark's problems, in batches."""

from collections.abc import Iterator, Sequence
from typing import Any

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import require
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.inference.generate import Generator


def draw_samples(
    generator: Generator, problems: Sequence[Problem], protocol: Protocol, draws: Sequence[Draw]
) -> Iterator[list[tuple[Draw, dict[str, Any]]]]:
    """The samples asked for, in their order, each with what is told of it; a list for each batch on the devices.

    A sample is a function of the model, seed, problem, number and protocol, whatever else is drawn beside it.

    Args:
        problems: of the benchmark; a draw has its problem's number among them.
        draws: those of a temperature must stand together.
    """
    first = 0
    while first < len(draws):
        temperature = draws[first].temperature
        batch = [draw for draw in draws[first : first + generator.max_rows] if draw.temperature == temperature]
        completions = generator.complete(
            [problems[draw.problem].prompt for draw in batch],
            seed=[protocol.seed_of(problems[draw.problem], draw.sample) for draw in batch],
            **protocol.options(temperature),
        )
        yield [
            (
                draw,
                {
                    "task_id": problems[draw.problem].task_id,
                    "completion": completion.completion,
                    "sample": draw.sample,
                    "temperature": temperature,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    "logprob": sum(completion.logprobs or []),
                },
            )
            for draw, completion in zip(batch, completions, strict=True)
        ]
        first += len(batch)


def require_room(tokenizer: Tokenizer, context: int, problems: Sequence[Problem], protocol: Protocol) -> None:
    """Raise `UserError` unless every prompt fits into a model's context with the new tokens."""
    for problem in problems:
        tokens = len(tokenizer.encode(problem.prompt))
        require(
            tokens < context,
            f"{problem.task_id}: its prompt of {tokens} tokens does not fit into the model's context of {context}; "
            "take a model with a longer one, or leave the problem out",
        )
        require(
            tokens + protocol.max_new_tokens <= context,
            f"max_new_tokens: the prompt of {problem.task_id} has {tokens} tokens, and {protocol.max_new_tokens} new "
            f"ones exceed the model's context of {context}; at most {context - tokens} fit",
        )
