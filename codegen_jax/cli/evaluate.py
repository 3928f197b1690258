"""evaluate: measure a model."""

import argparse
import dataclasses
from typing import Any

from codegen_jax.cli.arguments import MODEL, add_loading, load, whole_number
from codegen_jax.strict_json import dumps


def add_verbs(verbs: Any) -> None:
    evaluate = verbs.add_parser("evaluate", help="measure a model")
    evaluate.add_argument("model", metavar="MODEL", help=MODEL)
    measures = evaluate.add_subparsers(required=True, metavar="WHAT")
    verb = measures.add_parser("perplexity", help="on token files")
    verb.add_argument("tokens", metavar="TOKENS", help="a folder that prepare made with the model's tokenizer")
    verb.add_argument("--sequence-length", type=whole_number, metavar="N", help="default: the model's context less one")
    verb.add_argument(
        "--max-windows", type=whole_number, metavar="N", help="use so many windows at most (default: all)"
    )
    add_loading(verb)
    verb.add_argument("--json", action="store_true", help="one object")
    verb.calls(perplexity)


def perplexity(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.perplexity import measure_perplexity

    quantize = arguments.quantize
    results = {
        name or "whole": measure_perplexity(
            load(arguments, quantize=name), arguments.tokens, arguments.sequence_length, arguments.max_windows
        )
        for name in dict.fromkeys((None, quantize))
    }
    for name, result in results.items():
        if arguments.json:
            print(dumps({"weights": name} | dataclasses.asdict(result)))
        else:
            print(f"{name}: {result}" if quantize else result)
    if quantize and not arguments.json:
        print(f"{quantize} raises the perplexity by {results[quantize].above(results['whole']):.3%}")
