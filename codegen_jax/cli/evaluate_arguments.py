"""Benchmark arguments of `evaluate`: how samples are drawn, and how their programs run."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codegen_jax.cli.arguments import Parser, add_decoding, add_loading, number, whole_number
from codegen_jax.errors import UserError, require

if TYPE_CHECKING:
    from codegen_jax.evaluation.protocol import Protocol

DEFAULT_K = [1, 10, 100]


def add_sampling(
    verb: Parser, num_samples: int = 200, unit: str = "problem", greedy: str = "draw one sample at temperature 0"
) -> None:
    """Add the arguments for drawing samples. They have no defaults, so they can be refused for existing samples."""
    verb.add_argument(
        "--num-samples",
        type=whole_number,
        metavar="N",
        help=f"samples per {unit} and temperature (default: {num_samples})",
    )
    verb.add_argument(
        "--temperatures", type=number, nargs="+", metavar="X", help="sampling temperatures (default: 0.2 0.6 0.8)"
    )
    verb.add_argument("--top-p", type=number, metavar="X", help="nucleus sampling (default: 0.95)")
    verb.add_argument("--greedy", action="store_true", help=greedy)
    verb.add_argument("--seed", type=whole_number, metavar="N", help="random seed (default: 0)")
    verb.add_argument("--limit", type=whole_number, metavar="N", help="evaluate only the first N problems")
    add_decoding(verb)
    verb.add_argument(
        "--share", metavar="I/N", help="evaluate only part I of N of the problems; all parts use the same DIR"
    )
    add_loading(verb)


def add_completion_sampling(verb: Parser) -> None:
    """Like `add_sampling`, for benchmarks with one prompt per problem."""
    add_sampling(verb, greedy="draw one sample at temperature 0, truncated as in EvalPlus")
    verb.add_argument(
        "--max-new-tokens", type=whole_number, metavar="N", help="tokens per sample at most (default: 512)"
    )
    verb.add_argument(
        "--truncate",
        choices=("codegen", "evalplus", "none"),
        help="where samples end: as in the authors' sample.py (default), at EvalPlus' stop strings (default with "
        "--greedy), or only at eos",
    )
    verb.add_argument(
        "--export", choices=("bigcode",), help="also write generations_T*.json for bigcode-evaluation-harness"
    )


def add_pass_at_k(verb: Parser) -> None:
    verb.add_argument(
        "--k",
        type=whole_number,
        nargs="+",
        default=DEFAULT_K,
        metavar="N",
        help="values of k for pass@k (default: 1 10 100)",
    )


def add_execution(verb: Parser, timeout: str) -> None:
    """Add the arguments for running and judging programs.

    Args:
        timeout: description of the default timeout, for the help text.
    """
    verb.add_argument("--output", required=True, metavar="DIR", help="folder for the results and the report")
    verb.add_argument(
        "--workers", type=whole_number, metavar="N", help="programs to run in parallel (default: one per CPU)"
    )
    verb.add_argument(
        "--timeout", type=number, metavar="SECONDS", help=f"CPU time limit per program (default: {timeout})"
    )
    verb.add_argument(
        "--sandbox",
        choices=("auto", "sandlock", "bubblewrap", "namespaces"),
        default="auto",
        help="sandbox for the programs (default: auto, the first one that works)",
    )
    verb.add_argument("--unsafe", action="store_true", help="run the programs without a sandbox")
    verb.add_argument("--json", action="store_true", help="print the report as JSON")


def is_samples(name: str) -> bool:
    """Whether a name is a file of samples rather than a model; models are folders."""
    from codegen_jax.storage import open_path

    return name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")) or open_path(name).is_file()


def refuse_sampling_arguments(
    arguments: argparse.Namespace, add_arguments: Callable[[Parser], None], also: Sequence[str] = ()
) -> None:
    """Raise `UserError` if an argument from `add_arguments` or `also` was set; none applies to existing samples."""
    parser = Parser(add_help=False)
    add_arguments(parser)
    for name in (*parser.flags, *also):
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"{name}: applies only to a model, but {arguments.model} contains samples; leave it out")


def read_workers(arguments: argparse.Namespace) -> int:
    """The number of parallel workers. Checks --workers and --timeout."""
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    timeout = arguments.timeout
    require(workers > 0, f"workers: must be positive, got {workers}")
    require(timeout is None or 0 < timeout <= 86400, f"timeout: must be above 0 and at most 86400, got {timeout}")
    return workers


def read_protocol(arguments: argparse.Namespace, **defaults: Any) -> "Protocol":
    from codegen_jax.evaluation.protocol import Protocol

    names = ("num_samples", "top_p", "max_new_tokens", "truncate", "seed")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    if arguments.temperatures is not None:
        given["temperatures"] = tuple(0.0 + one for one in arguments.temperatures)  # turns -0 into 0, for file names
    if arguments.greedy:
        for name in ("num_samples", "temperatures", "top_p"):
            message = f"{name}: conflicts with --greedy (one sample at temperature 0); leave one out"
            require(name not in given, message)
        given = {"num_samples": 1, "temperatures": (0.0,)} | given
    return Protocol(**defaults | given)


def read_share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    require(found is not None, f"share: must be I/N, such as 3/16, got {text!r}")
    assert found is not None
    part, parts = map(int, found.groups())
    require(parts > 0, f"share: N must be positive, got {text}")
    require(0 < part <= parts, f"share: I must be from 1 to {parts}, got {text}")
    return part, parts


def read_limit(arguments: argparse.Namespace, problems: int) -> int:
    """The number of problems to evaluate, starting with the first."""
    limit = problems if arguments.limit is None else arguments.limit
    require(0 < limit <= problems, f"limit: must be from 1 to {problems}, the number of problems, got {limit}")
    return limit
