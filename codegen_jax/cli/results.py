"""The verbs results compare and results show, which read finished evaluations from disk."""

import argparse
import re
from typing import Any

from codegen_jax.cli.arguments import number, whole_number
from codegen_jax.errors import require
from codegen_jax.strict_json import dumps

DIR = "the output folder of an evaluation"


def add_verbs(verbs: Any) -> None:
    results = verbs.add_parser("results", help="compare evaluations, or show samples from one")
    what = results.add_subparsers(required=True, metavar="WHAT")
    verb = what.add_parser("compare", help="pass@k of evaluations, and how each differs from the first")
    verb.add_argument("first", metavar="DIR", help=f"{DIR}, with which the others are compared")
    verb.add_argument("others", metavar="DIR", nargs="+", help="the others'")
    verb.add_argument(
        "--k", type=whole_number, nargs="+", default=[1, 10, 100], metavar="N", help="of pass@k (default: 1 10 100)"
    )
    verb.add_argument("--json", action="store_true", help="one object")
    verb.calls(compare)
    verb = what.add_parser("show", help="the samples of a problem, and what became of them")
    verb.add_argument("folder", metavar="DIR", help=DIR)
    verb.add_argument("task_id", metavar="TASK_ID", help="of the problem, such as HumanEval/0")
    verb.add_argument("--temperature", type=number, metavar="X", help="default: all")
    verb.add_argument("--sample", type=whole_number, metavar="N", help="print this one whole (default: a list of all)")
    verb.calls(show)


def compare(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.comparison import compare, in_words
    from codegen_jax.evaluation.judged import read_results

    folders, ks = [arguments.first, *arguments.others], sorted(set(arguments.k))
    require(ks[0] > 0, f"k: {ks[0]} must be positive")
    for folder in arguments.others:
        require(folders.count(folder) == 1, f"{folder}: given twice; name each evaluation once")
    comparison = compare({folder: read_results(folder) for folder in folders}, ks)
    print(dumps(comparison) if arguments.json else in_words(comparison, ks))


def show(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.judged import find, named, read_results

    found = find(read_results(arguments.folder), arguments.task_id, arguments.temperature, arguments.sample)
    for temperature, judged in found.items():
        print(f"{arguments.task_id}{'' if temperature is None else f' at temperature {named(temperature)}'}")
        for one in judged:
            case = "" if one.case is None else f"case {one.case}, "
            said = f"{case}sample {one.sample}: {one.outcome}{'; ' if one.error else ''}{one.error}"
            whole = arguments.sample is not None
            print(printable(f"{said}\n\n{one.completion.rstrip()}\n" if whole else f"  {said.splitlines()[0]}"))


def printable(text: str) -> str:
    """A model's output with control characters and lone surrogates escaped, so that it can be printed safely."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda sign: ascii(sign[0])[1:-1], text)
