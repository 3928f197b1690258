"""lm-evaluation-harness on a model: its tasks are run, and a folder gets the report and, if wanted, the samples."""

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
from codegen_jax.evaluation.results import REPORT, REPORT_IN_WORDS
from codegen_jax.mistaken_paths import holds
from codegen_jax.storage import open_path, write_whole
from codegen_jax.strict_json import dumps

RESAMPLES = 1000  # behind standard errors that have no formula; lm_eval's 100,000 take minutes where they do not fork


def require_new(output: str) -> None:
    """Raise `UserError` for a folder that holds something, or a file."""
    folder = open_path(output)
    require(not folder.exists() or folder.is_dir(), f"output: {folder} is a file; choose a folder")
    names = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    require(not names, f"output: {folder} {holds(names)}; choose a new folder")


def run_harness(
    load: Callable[[], HarnessModel],
    tasks: Any,
    config: Mapping[str, Any],
    output: str,
    limit: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Run tasks and write report.json, report.md and, with `log_samples`, samples_TASK.jsonl, all at the end.

    Args:
        load: gives the model, once `output` is known to be new.
        tasks: as `load_tasks` gives them.
        config: of model and run, for the report.
        output: a new or empty folder; local, gs:// or s3://.
        limit: documents of each task, from the first.

    Returns:
        The content of report.json: lm_eval's results, with `config` and `lm_eval_version`.

    Raises:
        UserError: for a folder that holds something or can't be made, or a task that can't be scored or does not fit
            the model.
    """
    require_new(output)
    folder = open_path(output)
    files = {name: f"samples_{name.replace('/', '_')}.jsonl" for name in tasks["tasks"]}
    require(
        not log_samples or len(set(files.values())) == len(files),
        f"log_samples: tasks whose names differ in / and _ alone ({', '.join(files)}) have one file; run them apart",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)  # what can't be made is to fail before the work
    except OSError as error:
        raise UserError(f"output: {folder} can't be made ({error.strerror or error}); choose another folder") from error
    lm = load()
    with redirect_stdout(sys.stderr):  # lm_eval prints there, and so may a task
        try:
            found: Any = evaluate(
                lm,
                tasks,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=log_samples,
                confirm_run_unsafe_code=True,  # load_tasks has refused those that are not wanted
            )
        except (UserError, OSError, RuntimeError, MemoryError):  # the device's errors are RuntimeErrors
            raise
        except Exception as error:  # whatever a task's filters, metrics and data come to
            said = " ".join(str(error).split())[:300]
            raise UserError(
                f"tasks: {', '.join(tasks['tasks'])}: can't be scored ({type(error).__name__}: {said}); "
                "mend the YAML or data"
            ) from error
    samples = found.pop("samples", {})
    report = _plain({**found, "config": config, "lm_eval_version": version("lm_eval")})
    for name, records in samples.items():
        lines = "".join(dumps(_plain(record)) + "\n" for record in records)
        write_whole(folder / files[name], lines)
    write_whole(folder / REPORT, dumps(report, indent=2) + "\n")
    write_whole(folder / REPORT_IN_WORDS, in_words(report))
    return report


def in_words(report: Mapping[str, Any]) -> str:
    """The content of report.md: lm_eval's tables below what was run."""
    config = report["config"]
    said = [f"{name} {value}" for name, value in config.items() if isinstance(value, str | int | float) and value != ""]
    tables = [make_table(report, column) for column in ("results", "groups") if column in report]
    head = f"# lm-evaluation-harness {report['lm_eval_version']}: {config['model']}"
    return "\n\n".join([head, f"Settings: {', '.join(said)}.", *map(str.strip, tables)]) + "\n"


def _plain(value: Any) -> Any:
    """A value in JSON's types."""
    return json.loads(json.dumps(value, default=handle_non_serializable))
