"""Runs lm-evaluation-harness tasks on a model, and writes the report and, optionally, the samples to a folder."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable, make_table

from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.harness.model import HarnessModel
from codegen_jax.evaluation.results import REPORT, REPORT_MARKDOWN
from codegen_jax.mistaken_paths import contains
from codegen_jax.storage import open_path, write_whole
from codegen_jax.strict_json import dumps

RESAMPLES = 1000  # for standard errors without a formula; lm_eval's 100,000 take minutes without forked processes


def require_new(output: str) -> None:
    """Raise `UserError` if `output` is a file or a folder that is not empty."""
    folder = open_path(output)
    require(not folder.exists() or folder.is_dir(), f"output: {folder} is a file; choose a folder")
    names = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    require(not names, f"output: {folder} {contains(names)}; choose a new folder")


def run_harness(
    load: Callable[[], HarnessModel],
    tasks: Any,
    config: Mapping[str, Any],
    output: str,
    limit: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Run tasks, then write report.json, report.md and, with `log_samples`, samples_TASK.jsonl.

    Args:
        load: returns the model; called once `output` is known to be usable.
        tasks: as returned by `load_tasks`.
        config: the model's and run's settings, for the report.
        output: a new or empty folder; local, gs:// or s3://.
        limit: only the first N documents of each task.

    Returns:
        The content of report.json: lm_eval's results, with `config` and `lm_eval_version`.

    Raises:
        UserError: if the folder is not empty or can't be created, or if a task can't be scored or does not fit the
            model.
    """
    require_new(output)
    folder = open_path(output)
    files = {name: f"samples_{name.replace('/', '_')}.jsonl" for name in tasks["tasks"]}
    clashing = [name for name, file in files.items() if list(files.values()).count(file) > 1]
    require(
        not log_samples or not clashing,
        f"log_samples: {', '.join(clashing)} differ only in / and _, so they would share a file; run them separately",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)  # fail before the work if the folder can't be created
    except OSError as error:
        raise UserError(
            f"output: {folder} can't be created ({error.strerror or error}); choose another folder"
        ) from error
    lm = load()
    with redirect_stdout(sys.stderr):  # lm_eval prints to stdout, and so may a task
        try:
            found: Any = evaluate(
                lm,
                tasks,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=log_samples,
                confirm_run_unsafe_code=True,  # load_tasks has already refused unsafe tasks unless allowed
            )
        except (UserError, OSError, RuntimeError, MemoryError):  # the device's errors are RuntimeErrors
            raise
        except Exception as error:  # a task's filters, metrics and data may raise anything
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"tasks: {', '.join(tasks['tasks'])}: can't be scored ({type(error).__name__}: {text}); "
                "fix the YAML or data"
            ) from error
    samples = found.pop("samples", {})
    report = _plain({**found, "config": config, "lm_eval_version": version("lm_eval")})
    for name, records in samples.items():
        lines = "".join(dumps(_plain(record)) + "\n" for record in records)
        write_whole(folder / files[name], lines)
    write_whole(folder / REPORT, dumps(report, indent=2) + "\n")
    write_whole(folder / REPORT_MARKDOWN, to_markdown(report))
    return report


def to_markdown(report: Mapping[str, Any]) -> str:
    """The content of report.md: the settings, then lm_eval's tables."""
    config = report["config"]
    shown = [
        f"{name} {value}" for name, value in config.items() if isinstance(value, str | int | float) and value != ""
    ]
    tables = [make_table(report, column) for column in ("results", "groups") if column in report]
    head = f"# lm-evaluation-harness {report['lm_eval_version']}: {config['model']}"
    return "\n\n".join([head, f"Settings: {', '.join(shown)}.", *map(str.strip, tables)]) + "\n"


def _plain(value: Any) -> Any:
    """The value converted to JSON types."""
    return json.loads(json.dumps(value, default=handle_non_serializable))
