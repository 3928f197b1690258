"""Benchmark arguments of `evaluate`: how samples are drawn, and how their programs run."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codegen_jax.cli.arguments import Parser, add_loading, number, whole_number
from codegen_jax.errors import UserError, require

if TYPE_CHECKING:
    from codegen_jax.evaluation.protocol import Protocol

DEFAULT_K = [1, 10, 100]


def add_drawing(verb: Parser, num_samples: int = 200, greedy: str = "one sample at temperature 0") -> None:
    """Add the arguments for drawing samples. They have no defaults, so they can be refused if samples are given."""
    verb.add_argument("--num-samples", type=whole_number, metavar="N", help=f"of each (default: {num_samples})")
    verb.add_argument("--temperatures", type=number, nargs="+", metavar="X", help="default: 0.2 0.6 0.8")
    verb.add_argument("--top-p", type=number, metavar="X", help="default: 0.95")
    verb.add_argument("--greedy", action="store_true", help=greedy)
    verb.add_argument("--seed", type=whole_number, metavar="N", help="default: 0")
    verb.add_argument("--limit", type=whole_number, metavar="N", help="only the first N problems")
    verb.add_argument("--draft", metavar="MODEL", help="guess tokens, which changes none: lookup, or a model")
    verb.add_argument("--share", metavar="I/N", help="draw the I-th of N parts of the problems into the same DIR")
    add_loading(verb)


def add_completing(verb: Parser) -> None:
    """Like `add_drawing`, for benchmarks with one prompt per problem."""
    add_drawing(verb, greedy="one sample at temperature 0, truncated as by EvalPlus")
    verb.add_argument("--max-new-tokens", type=whole_number, metavar="N", help="default: 512")
    verb.add_argument(
        "--truncate",
        choices=("codegen", "evalplus", "none"),
        help="as the authors' sample.py (default), at EvalPlus' stops (default with --greedy), or at eos alone",
    )
    verb.add_argument(
        "--export", choices=("bigcode",), help="also write generations_T*.json, as its harness reads them"
    )


def add_pass_at_k(verb: Parser) -> None:
    verb.add_argument(
        "--k", type=whole_number, nargs="+", default=DEFAULT_K, metavar="N", help="of pass@k (default: 1 10 100)"
    )


def add_running(verb: Parser, timeout: str) -> None:
    """Add the arguments for running and judging programs.

    Args:
        timeout: description of the default timeout, for the help text.
    """
    verb.add_argument("--output", required=True, metavar="DIR", help="where results and report go")
    verb.add_argument("--workers", type=whole_number, metavar="N", help="programs at a time (default: one per CPU)")
    verb.add_argument("--timeout", type=number, metavar="SECONDS", help=f"of CPU time (default: {timeout})")
    verb.add_argument(
        "--sandbox", choices=("auto", "sandlock", "bubblewrap", "namespaces"), default="auto", help="default: auto"
    )
    verb.add_argument("--unsafe", action="store_true", help="run the programs where no sandbox can be had")
    verb.add_argument("--json", action="store_true", help="one object")


def is_samples(name: str) -> bool:
    """Whether a name is a file of samples rather than a model; models are folders."""
    from codegen_jax.storage import open_path

    return name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")) or open_path(name).is_file()


def refuse_drawing(arguments: argparse.Namespace, drawing: Callable[[Parser], None], also: Sequence[str] = ()) -> None:
    """Raise `UserError` if any argument from `drawing` or `also` was set; they do not apply to given samples."""
    parser = Parser(add_help=False)
    drawing(parser)
    for name in (*parser.flags, *also):
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"{name}: is of a model's samples, and {arguments.model} are samples that are there")


def read_workers(arguments: argparse.Namespace) -> int:
    """The number of parallel workers. Checks --workers and --timeout."""
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    timeout = arguments.timeout
    require(workers > 0, f"workers: {workers} must be positive")
    require(timeout is None or 0 < timeout <= 86400, f"timeout: {timeout} must be positive, and a day at most")
    return workers


def read_protocol(arguments: argparse.Namespace, **defaults: Any) -> "Protocol":
    from codegen_jax.evaluation.protocol import Protocol

    names = ("num_samples", "top_p", "max_new_tokens", "truncate", "seed")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    if arguments.temperatures is not None:
        given["temperatures"] = tuple(0.0 + one for one in arguments.temperatures)  # turn -0 into 0, also in file names
    if arguments.greedy:
        for name in ("num_samples", "temperatures", "top_p"):
            require(name not in given, f"{name}: --greedy draws one sample at temperature 0; leave one of the two out")
        given = {"num_samples": 1, "temperatures": (0.0,)} | given
    return Protocol(**defaults | given)


def read_share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    require(found is not None, f"share: {text!r} must be I/N, such as 3/16")
    assert found is not None
    part, parts = map(int, found.groups())
    require(parts > 0, f"share: {text}: there must be one part at least")
    require(0 < part <= parts, f"share: {text}: the part must be from 1 to {parts}")
    return part, parts


def read_limit(arguments: argparse.Namespace, problems: int) -> int:
    """The number of problems to evaluate, starting with the first."""
    limit = problems if arguments.limit is None else arguments.limit
    require(0 < limit <= problems, f"limit: {limit} must be from 1 to the {problems} problems that there are")
    return limit
