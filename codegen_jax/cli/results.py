"""The verbs results compare and results show, which read finished evaluations from disk."""

import argparse
import re
from typing import Any

from codegen_jax.cli.arguments import number, whole_number
from codegen_jax.errors import require
from codegen_jax.strict_json import dumps

DIR = "output folder of an evaluation"


def add_verbs(verbs: Any) -> None:
    results = verbs.add_parser("results", help="compare evaluations, or show an evaluation's samples")
    actions = results.add_subparsers(required=True, metavar="ACTION")
    verb = actions.add_parser("compare", help="print pass@k of evaluations, and how each differs from the first")
    verb.add_argument("first", metavar="DIR", help="output folder of the baseline evaluation")
    verb.add_argument("others", metavar="DIR", nargs="+", help="output folders of the evaluations to compare with it")
    verb.add_argument(
        "--k",
        type=whole_number,
        nargs="+",
        default=[1, 10, 100],
        metavar="N",
        help="values of k for pass@k (default: 1 10 100)",
    )
    verb.add_argument("--json", action="store_true", help="print the comparison as JSON")
    verb.calls(compare)
    verb = actions.add_parser("show", help="show a problem's samples and their outcomes")
    verb.add_argument("folder", metavar="DIR", help=DIR)
    verb.add_argument("task_id", metavar="TASK_ID", help="a problem's task_id, such as HumanEval/0")
    verb.add_argument("--temperature", type=number, metavar="X", help="show only this temperature (default: all)")
    verb.add_argument("--sample", type=whole_number, metavar="N", help="print this sample in full (default: list all)")
    verb.calls(show)


def compare(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.comparison import compare, to_text
    from codegen_jax.evaluation.judged import read_results

    folders, ks = [arguments.first, *arguments.others], sorted(set(arguments.k))
    require(ks[0] > 0, f"k: must be positive, got {ks[0]}")
    for folder in arguments.others:
        require(folders.count(folder) == 1, f"{folder}: given twice; give each evaluation once")
    comparison = compare({folder: read_results(folder) for folder in folders}, ks)
    print(dumps(comparison) if arguments.json else to_text(comparison, ks))


def show(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.judged import find, format_temperature, read_results

    found = find(read_results(arguments.folder), arguments.task_id, arguments.temperature, arguments.sample)
    for temperature, judged in found.items():
        at = "" if temperature is None else f" at temperature {format_temperature(temperature)}"
        print(arguments.task_id + at)
        for one in judged:
            case = "" if one.case is None else f"case {one.case}, "
            summary = f"{case}sample {one.sample}: {one.outcome}{'; ' if one.error else ''}{one.error}"
            in_full = arguments.sample is not None
            text = f"{summary}\n\n{one.completion.rstrip()}\n" if in_full else f"  {summary.splitlines()[0]}"
            print(printable(text))


def printable(text: str) -> str:
    """A model's output with control characters and lone surrogates escaped, so that it can be printed safely."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda character: ascii(character[0])[1:-1], text)
