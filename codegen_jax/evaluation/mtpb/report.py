"""MTPB's score: the mean over problems of the share of programs that print the expected value."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from codegen_jax.evaluation.intervals import mean_interval
from codegen_jax.evaluation.mtpb.cases import Case
from codegen_jax.evaluation.verdicts import OUTCOMES

MISSING = ("FileNotFoundError", "ModuleNotFoundError")  # the files that some problems read are not public


class Execution(NamedTuple):
    """A program that was run.

    Attributes:
        case: its case.
        sample: index among the case's samples.
        program: the whole program.
        outcome: passed, or how it failed (evaluation/verdicts.py).
        error: the last line of the error; "" if it passed.
        cut_tokens: number of tokens cut from the left of histories longer than the model's context.
    """

    case: Case
    sample: int
    program: str
    outcome: str
    error: str
    cut_tokens: int = 0


def make_report(executions: Sequence[Execution], cases: Sequence[Case], mode: str, checker: str) -> dict[str, Any]:
    """The results of programs at one temperature, or of given samples.

    Args:
        executions: at least one.
        cases: all cases of the benchmark.

    Returns:
        Plain values: pass_rate and its 95% interval, passed, executions, checker, mode, the numbers of problems and of
        attempted problems, cases without a program, rates by problem, outcomes, lacking (by problem, the first error
        about a missing file or package), only_repaired (by problem, the number of passed programs that the official
        checker fails), and cut (the number of programs with a history truncated from the left).
    """
    count, passed = Counter[str](), Counter[str]()
    for one in executions:
        count[one.case.problem] += 1
        passed[one.case.problem] += one.outcome == "passed"
    rates = {problem: passed[problem] / count[problem] for problem in count}
    outcomes = Counter(one.outcome for one in executions)
    return {
        "pass_rate": float(np.mean(list(rates.values()))),
        "interval": list(mean_interval(np.array(list(rates.values())))),
        "passed": outcomes["passed"],
        "executions": len(executions),
        "checker": checker,
        "mode": mode,
        "problems": len({case.problem for case in cases}),
        "attempted": len(rates),
        "empty_cases": len(cases) - len({one.case.task_id for one in executions}),
        "rates": rates,
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "lacking": _missing(executions),
        "only_repaired": _count(
            one
            for one in executions
            if one.outcome == "passed" and (one.case.expected is None or isinstance(one.case.expected, dict))
        ),
        "cut": sum(one.cut_tokens > 0 for one in executions),
    }


def _missing(executions: Iterable[Execution]) -> dict[str, str]:
    missing = dict[str, str]()
    for one in executions:
        if one.error.startswith(MISSING):
            missing.setdefault(one.case.problem, one.error)
    return missing


def _count(executions: Iterable[Execution]) -> Mapping[str, int]:
    return dict(Counter(one.case.problem for one in executions))
