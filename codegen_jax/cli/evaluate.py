"""evaluate: measure a model, or the samples of one."""

import argparse
import dataclasses
import os
from typing import Any

from codegen_jax.cli.arguments import MODEL, Parser, add_loading, load, number, whole_number
from codegen_jax.errors import require
from codegen_jax.strict_json import dumps


def add_verbs(verbs: Any) -> None:
    evaluate = verbs.add_parser("evaluate", help="measure a model, or samples of a benchmark")
    evaluate.add_argument(
        "model",
        metavar="MODEL",
        help=f"{MODEL}; of a benchmark, its samples: JSON lines with task_id and completion, or solution",
    )
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
    verb = measures.add_parser("humaneval", help="run samples of HumanEval's problems: pass@k")
    add_running(verb)
    verb.calls(humaneval)
    verb = measures.add_parser("mbpp", help="run samples of MBPP's problems: pass@k")
    verb.add_argument("--problems", required=True, metavar="FILE", help="the benchmark's own mbpp.jsonl")
    add_running(verb)
    verb.calls(mbpp)


def add_running(verb: Parser) -> None:
    """How programs are run and judged."""
    verb.add_argument("--output", required=True, metavar="DIR", help="where results and report go")
    verb.add_argument(
        "--k", type=whole_number, nargs="+", default=[1, 10, 100], metavar="N", help="of pass@k (default: 1 10 100)"
    )
    verb.add_argument("--workers", type=whole_number, metavar="N", help="programs at a time (default: one per CPU)")
    verb.add_argument(
        "--timeout", type=number, metavar="SECONDS", help="of CPU time (default: by the canonical solution's)"
    )
    verb.add_argument(
        "--sandbox", choices=("auto", "sandlock", "bubblewrap", "namespaces"), default="auto", help="default: auto"
    )
    verb.add_argument("--unsafe", action="store_true", help="run the programs where no sandbox can be had")
    verb.add_argument("--json", action="store_true", help="one object")


def humaneval(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.problems import humaneval

    judge_samples(arguments, "humaneval", humaneval())


def mbpp(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.problems import mbpp

    judge_samples(arguments, "mbpp", mbpp(arguments.problems))


def judge_samples(arguments: argparse.Namespace, benchmark: str, problems: list[Any]) -> None:
    from codegen_jax.evaluation.evaluation_report import Settings, in_words
    from codegen_jax.evaluation.results import REPORT_IN_WORDS
    from codegen_jax.evaluation.run_evaluation import run_evaluation
    from codegen_jax.evaluation.samples import read_samples

    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    timeout, output = arguments.timeout, arguments.output
    require(workers > 0, f"workers: {workers} must be positive")
    require(timeout is None or 0 < timeout <= 86400, f"timeout: {timeout} must be positive, and a day at most")
    for k in arguments.k:
        require(k > 0, f"k: {k} must be positive")
    samples = read_samples(arguments.model, {problem.task_id: problem for problem in problems})

    from codegen_jax.evaluation.execution import judge
    from codegen_jax.evaluation.sandbox_layers import choose_layer

    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    settings = Settings(timeout, layer.described, arguments.unsafe)

    def run(by_id: Any, programs: Any) -> Any:
        return judge(by_id, programs, layer, workers, timeout)

    report = run_evaluation(benchmark, problems, samples, output, settings, run, arguments.k)
    print(dumps(report) if arguments.json else f"{in_words(report)}\nreport: {output.rstrip('/')}/{REPORT_IN_WORDS}")


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
