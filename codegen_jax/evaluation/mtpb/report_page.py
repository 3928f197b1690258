"""MTPB's report as a readable page, report.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codegen_jax.evaluation.markdown import fenced, page, span, table
from codegen_jax.evaluation.mtpb.cases import PROBLEMS
from codegen_jax.evaluation.mtpb.report import Execution
from codegen_jax.evaluation.published import format_percent, mtpb_comparison, source_notes

MAX_ROWS = 10  # rows shown of a longer table
EXAMPLES = 2  # number of passed programs shown, and the same number of failed ones
SINGLE_MODE = (
    "In single mode, all prompts of a problem are joined into one, which is completed once with the tokens of all "
    "turns. The paper reports results for such prompts but not how they are built, so this construction is ours."
)


def to_markdown(
    head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]], executions: Mapping[str, Sequence[Execution]]
) -> str:
    """The content of report.md: Markdown, in ASCII.

    Args:
        head: model and config (both None for given samples), timeout, unsafe, sandbox.
        reports: results of `make_report` by temperature name; "-" for given samples.
        executions: the programs behind each report, by the same keys.
    """
    return page([*_head(head, reports), *_paper_comparison(head, reports), *_details(reports), *_examples(executions)])


def _head(head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    unsafe = " (UNSAFE: run without a sandbox)" if head["unsafe"] else ""
    yield f"# mtpb{'' if head['model'] is None else ': ' + head['model']}{unsafe}"
    one = next(iter(reports.values()))
    rows = [
        [
            temperature,
            f"{report['executions']:,}",
            f"{report['passed']:,}",
            f"{report['pass_rate']:.2%} [{report['interval'][0]:.1%}, {report['interval'][1]:.1%}]",
        ]
        for temperature, report in reports.items()
    ]
    yield table(["temperature", "programs", "passed", "pass rate"], rows)
    yield (
        "The pass rate is the mean over problems of the share of a problem's programs that print the expected value. "
        "In brackets: its 95% interval (bootstrap over problems)."
    )
    yield f"Mode {one['mode']}, checker {one['checker']}."
    if one["mode"] != "multi":
        yield SINGLE_MODE
    if one["checker"] == "official":
        yield "The official checker fails every program if a dict or None is expected (7 of the 575 cases)."
    timeout = "the checker's 20 s" if head["timeout"] is None else f"{head['timeout']:g} s"
    yield f"Sandbox: {', '.join(head['sandbox']) or 'none'}. CPU time limit: {timeout}."
    missing = one["problems"] - one["attempted"]
    if missing:
        yield (
            f"**{missing} of the benchmark's {one['problems']} problems have no programs. The pass rate is the mean "
            f"over the other {one['attempted']} and is not comparable with results for the whole benchmark.**"
        )
    elif one["empty_cases"]:
        yield f"**{one['empty_cases']} cases have no program. A problem's pass rate is computed from its other cases.**"
    broken = sum(report["outcomes"]["sandbox error"] for report in reports.values())
    if broken:
        yield (
            f"**The sandbox failed for {broken} programs. They count as not passed; run the same command again "
            "to retry.**"
        )


def _paper_comparison(head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    one = next(iter(reports.values()))
    if head["config"] is None or one["attempted"] < PROBLEMS:
        return
    figures = mtpb_comparison(one["mode"], head["config"])
    if not figures:
        return
    best = max(report["pass_rate"] for report in reports.values())
    yield "## Comparison with the paper"
    published = [[name, format_percent(figure)] for name, figure in figures.items()]
    yield table([f"{one['mode']}-turn", "pass rate"], [["**this model**", f"**{best:.2%}**"], *published])
    yield "The paper's results are from 40 samples per case with top_p 0.95."
    yield from source_notes(figures.values())


def _details(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Outcomes"
    outcomes = next(iter(reports.values()))["outcomes"]
    counts = {outcome: [report["outcomes"][outcome] for report in reports.values()] for outcome in outcomes}
    rows = [[outcome, *(f"{count:,}" for count in found)] for outcome, found in counts.items() if any(found)]
    at = ["programs" if temperature == "-" else f"at {temperature}" for temperature in reports]
    yield table(["outcome", *at], rows)
    cut = sum(report["cut"] for report in reports.values())
    if cut:
        yield f"In {cut:,} programs, the history was longer than the model's context and was truncated from the left."
    missing = {problem: error for report in reports.values() for problem, error in report["lacking"].items()}
    if missing:
        yield "Problems whose programs need a file or package that is missing here, with one error each:"
        yield "\n".join(f"- {problem}: {span(error)}" for problem, error in sorted(missing.items(), key=_number))
    only = {problem: 0 for report in reports.values() for problem in report["only_repaired"]}
    for problem in only:
        only[problem] = sum(report["only_repaired"].get(problem, 0) for report in reports.values())
    if only:
        counted = ", ".join(f"{count:,} for problem {problem}" for problem, count in sorted(only.items(), key=_number))
        yield f"Programs that passed here but always fail with the official checker: {counted}."
    best = max(reports.values(), key=lambda report: report["pass_rate"])
    never = [problem for problem, rate in best["rates"].items() if not rate]
    hard = sorted((item for item in best["rates"].items() if 0 < item[1] < 1), key=lambda item: item[1])[:MAX_ROWS]
    if never:
        at = " at the best temperature" if "-" not in reports else ""
        yield f"{len(never)} of {len(best['rates'])} problems were never solved{at}: {', '.join(never)}."
    if hard:
        yield f"The lowest pass rates{' of the other problems' if never else ''}:"
        yield table(["problem", "pass rate"], [[problem, f"{rate:.2%}"] for problem, rate in hard])


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _examples(executions: Mapping[str, Sequence[Execution]]) -> Iterator[str]:
    """The first passed and failed programs, each from a different problem."""
    for title, passed in (("## Passed programs", True), ("## Failed programs", False)):
        first = dict[str, tuple[str, Execution]]()
        for temperature, found in executions.items():
            for one in found:
                if (one.outcome == "passed") == passed:
                    first.setdefault(one.case.problem, (temperature, one))
        if first:
            yield title
        for temperature, one in list(first.values())[:EXAMPLES]:
            at = "" if temperature == "-" else f" at temperature {temperature}"
            yield f"Problem {one.case.problem}, case {one.case.case}, sample {one.sample}{at}: {one.outcome}"
            yield fenced(one.program, "python")
            if one.error:
                yield fenced(one.error, "text")
