"""Judges MTPB samples and reports the results."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.mtpb.cases import Case
from codegen_jax.evaluation.mtpb.printed import Checker, Printed
from codegen_jax.evaluation.mtpb.report import Execution, make_report
from codegen_jax.evaluation.mtpb.report_page import to_markdown
from codegen_jax.evaluation.results import fingerprint
from codegen_jax.evaluation.run_evaluation import judge_samples
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import Judge

log = logging.getLogger(__name__)


def run_mtpb(
    cases: Sequence[Case],
    samples: Sequence[Sample],
    mode: str,
    checker: Checker,
    output: str,
    settings: Settings,
    judge: Judge,
) -> dict[str, Any]:
    """Judge MTPB samples, and write the results and the report.

    Args:
        cases: all cases of the benchmark.
        samples, mode: as returned by `read_mtpb_samples`.

    Returns:
        The content of report.json.

    Raises:
        UserError: if the output folder does not belong to this evaluation.
    """
    by_id = {case.task_id: case for case in cases}
    identity = {
        "benchmark": "mtpb",
        "problems": fingerprint([astuple(case) for case in cases]),
        "mode": mode,
        "checker": checker,
    }
    references = {task_id: Printed(case, checker) for task_id, case in by_id.items()}
    results = judge_samples(identity, references, samples, output, settings, judge)
    executions, count = list[Execution](), Counter[str]()
    for number, sample in enumerate(samples):
        verdict = results.verdicts[number]
        executions.append(
            Execution(by_id[sample.task_id], count[sample.task_id], sample.program, verdict.outcome, verdict.error)
        )
        count[sample.task_id] += 1
    report = make_report(executions, cases, mode, checker)
    head = {"model": None, "config": None, "timeout": settings.timeout, "unsafe": settings.unsafe}
    results.finish(report, to_markdown(head | {"sandbox": settings.sandbox}, {"-": report}, {"-": executions}))
    if report["empty_cases"]:
        log.warning(f"{report['empty_cases']} of {len(cases)} cases have no samples")
    return report
