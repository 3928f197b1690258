"""evaluate MODEL harness: run a model on lm-evaluation-harness tasks."""

import argparse
import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

from codegen_jax.cli.arguments import add_loading, load, whole_number
from codegen_jax.errors import require, require_seed
from codegen_jax.strict_json import dumps


def add_verb(measures: Any) -> None:
    verb = measures.add_parser("harness", help="lm-evaluation-harness tasks, for a model")
    verb.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        metavar="TASK",
        help="lm_eval task names, YAML files, or folders (all tasks in them); separated by spaces or commas",
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="a new folder for report.json and report.md")
    verb.add_argument(
        "--num-fewshot", type=whole_number, metavar="N", help="few-shot examples per prompt (default: the task's)"
    )
    verb.add_argument("--limit", type=whole_number, metavar="N", help="use only the first N documents of each task")
    verb.add_argument(
        "--seed",
        type=whole_number,
        metavar="N",
        help="seed for few-shot examples and sampling (default: 1234, as in lm_eval)",
    )
    verb.add_argument("--log-samples", action="store_true", help="also write samples_TASK.jsonl, one line per document")
    verb.add_argument(
        "--unsafe",
        action="store_true",
        help="accept tasks that run the model's programs, with your permissions and without a sandbox",
    )
    add_loading(verb)
    verb.add_argument("--json", action="store_true", help="print the report as JSON")
    verb.calls(harness)


def harness(arguments: argparse.Namespace) -> None:
    num_fewshot, limit, seed = arguments.num_fewshot, arguments.limit, arguments.seed
    require(num_fewshot is None or num_fewshot >= 0, f"num_fewshot: must not be negative, got {num_fewshot}")
    require(limit is None or limit > 0, f"limit: must be positive, got {limit}")
    if seed is not None:
        require_seed("seed", seed)
    require(find_spec("lm_eval") is not None, "harness: lm_eval is not installed; pip install 'codegen_jax[harness]'")
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm_eval would fork to estimate errors, which is unsafe with JAX's threads
    from datasets.utils import disable_progress_bars

    from codegen_jax.evaluation.harness.model import SEED, HarnessModel
    from codegen_jax.evaluation.harness.run import require_new, run_harness, to_markdown
    from codegen_jax.evaluation.harness.tasks import load_tasks
    from codegen_jax.evaluation.model_identity import model_identity
    from codegen_jax.evaluation.results import REPORT_MARKDOWN
    from codegen_jax.inference.generator import tokenizer_of
    from codegen_jax.weights.open import open_model

    if not sys.stderr.isatty():
        disable_progress_bars()
    require_new(arguments.output)
    names = [name for word in arguments.tasks for name in word.split(",") if name]
    with redirect_stdout(sys.stderr):  # output of tasks and their libraries is not part of the report
        tasks = load_tasks(names, num_fewshot, seed, arguments.unsafe)
    weights = open_model(arguments.model, allow_nonfinite=arguments.allow_nonfinite, adapters=arguments.adapters)
    tokenizer_of(weights, arguments.model)
    config = model_identity(arguments.model, weights, arguments.adapters) | {
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
    text = f"{to_markdown(report)}\nreport: {arguments.output.rstrip('/')}/{REPORT_MARKDOWN}"
    print(dumps(report) if arguments.json else text)
