"""From samples to a report: each is judged once, however often the command is killed and started again."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from tqdm import tqdm

from codegen_jax.evaluation.evaluation_report import Settings, in_words, make_report
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.results import Results, fingerprint
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import Judge

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
    """Judge samples of HumanEval or MBPP, and write results and report.

    Args:
        problems: all of the benchmark.
        ks: of pass@k, from 1; may be others when the same evaluation is given again.

    Returns:
        The content of report.json.

    Raises:
        UserError: for an output folder that cannot be this evaluation's.
    """
    identity = {"benchmark": benchmark, "problems": fingerprint([astuple(problem) for problem in problems])}
    results = judge_samples(identity, {one.task_id: one for one in problems}, samples, output, settings, judge)
    report = make_report(benchmark, len(problems), samples, results.verdicts, settings, sorted(set(ks)))
    results.finish(report, in_words(report))
    if report["attempted"] < report["problems"]:
        log.warning(f"{report['problems'] - report['attempted']} of {report['problems']} problems have no sample")
    return report


def judge_samples(
    identity: Mapping[str, Any],
    judged_by: Mapping[str, Any],
    samples: Sequence[Sample],
    output: str,
    settings: Settings,
    judge: Judge,
) -> Results:
    """The output folder with the verdicts on all samples; those that it has not yet are judged.

    Args:
        identity: by name, what of the benchmark decides verdicts.
        judged_by: by the samples' task_id, what `judge` takes.
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
        left = f"goes on with the other {len(programs)}" if programs else "nothing is left to do"
        log.info(f"{output}: {len(done)} of {len(samples)} samples are judged already, {left}")
    if programs:
        bar = tqdm(total=len(samples), initial=len(done), unit="program", disable=None)
        with bar:
            for number, verdict in judge(judged_by, programs):
                results.add(number, verdict)
                bar.update()
    return results
