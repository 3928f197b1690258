"""From samples to a report: each sample is judged once, even if the command is killed and restarted."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from codegen_jax.evaluation.evaluation_report import Settings, make_report, to_markdown
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.results import Results, fingerprint
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import Judge
from codegen_jax.progress import Progress

log = logging.getLogger(__name__)


def run_evaluation(
    benchmark: str,
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    output: str,
    settings: Settings,
    judge: Judge,
    ks: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """Judge samples of HumanEval or MBPP, and write results and a report.

    Args:
        problems: all problems of the benchmark.
        ks: values of k for pass@k, each at least 1; they may change when an evaluation is resumed.

    Returns:
        The content of report.json.

    Raises:
        UserError: if the output folder can't be used for this evaluation.
    """
    identity = {"benchmark": benchmark, "problems": fingerprint([astuple(problem) for problem in problems])}
    results = judge_samples(identity, {one.task_id: one for one in problems}, samples, output, settings, judge)
    report = make_report(benchmark, len(problems), samples, results.verdicts, settings, sorted(set(ks)))
    results.finish(report, to_markdown(report))
    if report["attempted"] < report["problems"]:
        log.warning(f"{report['problems'] - report['attempted']} of {report['problems']} problems have no samples")
    return report


def judge_samples(
    identity: Mapping[str, Any],
    references: Mapping[str, Any],
    samples: Sequence[Sample],
    output: str,
    settings: Settings,
    judge: Judge,
) -> Results:
    """Judge the samples that have no verdict yet, and return the output folder with the verdicts on all samples.

    Args:
        identity: the benchmark's values that determine verdicts, by name.
        references: what a sample's program is judged against, by task_id; passed to `judge`.
    """
    identity = {
        **identity,
        "samples": fingerprint([sample.record for sample in samples]),
        **asdict(settings),
        "sandbox": list(settings.sandbox),
    }
    results = Results(output, identity, samples)
    done = {number for number, verdict in results.verdicts.items() if verdict.outcome != "sandbox error"}
    programs = [(number, sample.task_id, sample.program) for number, sample in enumerate(samples) if number not in done]
    if done:
        rest = f"judging the other {len(programs)}" if programs else "nothing left to do"
        log.info(f"{output}: {len(done)} of {len(samples)} samples are already judged; {rest}")
    if programs:
        with Progress("judging", len(samples), "program", initial=len(done)) as progress:
            for number, verdict in judge(references, programs):
                results.add(number, verdict)
                progress.update()
    return results
