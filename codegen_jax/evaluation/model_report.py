"""The report of a model's evaluation (report.json): pass@k at each temperature, and the best of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from codegen_jax.evaluation.judged import Judged, format_temperature
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.tally import Tally, tally
from codegen_jax.evaluation.verdicts import OUTCOMES


def make_report(
    run: Mapping[str, Any],
    problems: Sequence[Problem],
    results: Mapping[float, Sequence[Judged]],
    ks: Sequence[int],
    sandbox: Sequence[str],
) -> dict[str, Any]:
    """The content of report.json. It depends only on the arguments.

    pass@k is the mean over problems that have samples. It is omitted if any of them has fewer than k samples. As in the
    paper, the best is chosen independently for each k, so different values of k may have different best temperatures.

    Args:
        run: the content of run.json.
        problems: all problems of the benchmark, in order.
        results: results by temperature, each in problem order; at least one temperature and one result.
        ks: values of k for pass@k, each at least 1.
        sandbox: the layers around a program.

    Returns:
        Plain values: benchmark, model, settings (k, temperatures, and the remaining fields of run.json), pass_at_k and
        intervals by temperature and k, best by k, left_out (the reason for a missing pass@k) by k, the number of
        problems, the number attempted (the minimum over temperatures), samples and outcomes by temperature, sandbox.
    """
    tallies = {temperature: tally(judged) for temperature, judged in results.items()}
    outcomes = {temperature: Counter(one.outcome for one in judged) for temperature, judged in results.items()}
    top_level = ("benchmark", "model", "problems", "sandbox")
    others = {name: value for name, value in run.items() if name not in top_level}
    return {
        "benchmark": run["benchmark"],
        "model": run["model"],
        "settings": {"k": list(ks), "temperatures": list(results), **others},
        "pass_at_k": {format_temperature(at): one.pass_at_k(ks) for at, one in tallies.items()},
        "best": _best({at: one.pass_at_k(ks) for at, one in tallies.items()}),
        "intervals": {format_temperature(at): one.intervals(ks) for at, one in tallies.items()},
        "left_out": _left_out(tallies, ks),
        "problems": len(problems),
        "attempted": min(len(one.task_ids) for one in tallies.values()),
        "samples": {format_temperature(at): sum(one.samples) for at, one in tallies.items()},
        "outcomes": {
            format_temperature(at): {outcome: count[outcome] for outcome in OUTCOMES} for at, count in outcomes.items()
        },
        "sandbox": list(sandbox),
    }


def _best(estimates: Mapping[float, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The largest pass@k over all temperatures, by k; ties go to the lowest temperature."""
    best = dict[str, dict[str, float]]()
    for temperature, found in sorted(estimates.items()):
        for k, value in found.items():
            if k not in best or value > best[k]["value"]:
                best[k] = {"value": value, "temperature": temperature}
    return best


def _left_out(tallies: Mapping[float, Tally], ks: Sequence[int]) -> dict[str, str]:
    """Why a pass@k is missing, by k: which problem has the fewest samples and, given several temperatures, at which."""
    left_out = dict[str, str]()
    for temperature, one in tallies.items():
        fewest = min(one.samples)
        where = f" at temperature {format_temperature(temperature)}" if len(tallies) > 1 else ""
        reason = f"{one.task_ids[one.samples.index(fewest)]} has {fewest} sample{'s' if fewest != 1 else ''}{where}"
        for k in ks:
            if k > fewest:
                left_out.setdefault(str(k), reason)
    return left_out
