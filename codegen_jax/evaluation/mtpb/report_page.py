"""MTPB's report as a readable page, report.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codegen_jax.evaluation.markdown import fenced, page, span, table
from codegen_jax.evaluation.mtpb.cases import PROBLEMS
from codegen_jax.evaluation.mtpb.report import Execution
from codegen_jax.evaluation.published import marked, mtpb_beside, sources_in_words

LONGEST = 10  # rows of a table that could be much longer
EXAMPLES = 2  # each of passed and of failed programs
OURS = (
    "Mode single: all prompts of a problem are one, answered once with the tokens of all turns. The paper gives its "
    "figures for such prompts and not how they are made, so this construction is ours."
)


def in_words(
    head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]], executions: Mapping[str, Sequence[Execution]]
) -> str:
    """The content of report.md: Markdown, in ASCII.

    Args:
        head: model and config (both None for given samples), timeout, unsafe, sandbox.
        reports: results of `make_report` by temperature name; "-" for given samples.
        executions: the programs behind each report, by the same keys.
    """
    return page([*_head(head, reports), *_beside_the_paper(head, reports), *_details(reports), *_examples(executions)])


def _head(head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    unsafe = " (UNSAFE: no sandbox was asked for)" if head["unsafe"] else ""
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
        "The pass rate is the mean over problems of the share of a problem's programs that print the right value. In "
        "brackets: its 95 % interval, by drawing problems anew (bootstrap)."
    )
    yield f"Mode {one['mode']}, checker {one['checker']}."
    if one["mode"] != "multi":
        yield OURS
    if one["checker"] == "official":
        yield "The official checker fails whatever is printed where a dict or None is expected: 7 of the 575 cases."
    timeout = "the checker's 20 s" if head["timeout"] is None else f"{head['timeout']:g} s"
    yield f"Sandbox: {', '.join(head['sandbox']) or 'none'}. Limit of CPU time: {timeout}."
    missing = one["problems"] - one["attempted"]
    if missing:
        yield (
            f"**{missing} of the benchmark's {one['problems']} problems have no program. The pass rate is the mean "
            f"over the other {one['attempted']} and compares with no figure of the whole benchmark.**"
        )
    elif one["empty_cases"]:
        yield f"**Cases without a program: {one['empty_cases']}. A problem's share is that of its other cases.**"
    broke = sum(report["outcomes"]["sandbox error"] for report in reports.values())
    if broke:
        yield (
            f"**The sandbox broke under {broke} programs. They count as not passed here; the same command runs them "
            "again.**"
        )


def _beside_the_paper(head: Mapping[str, Any], reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    one = next(iter(reports.values()))
    if head["config"] is None or one["attempted"] < PROBLEMS:
        return
    figures = mtpb_beside(one["mode"], head["config"])
    if not figures:
        return
    best = max(report["pass_rate"] for report in reports.values())
    yield "## Beside the paper"
    theirs = [[name, marked(figure)] for name, figure in figures.items()]
    yield table([f"{one['mode']}-turn", "pass rate"], [["**this model**", f"**{best:.2%}**"], *theirs])
    yield "The paper's figures are of 40 samples per case with top_p 0.95."
    yield from sources_in_words(figures.values())


def _details(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## How programs ended"
    outcomes = next(iter(reports.values()))["outcomes"]
    counts = {outcome: [report["outcomes"][outcome] for report in reports.values()] for outcome in outcomes}
    rows = [[outcome, *(f"{count:,}" for count in found)] for outcome, found in counts.items() if any(found)]
    at = ["programs" if temperature == "-" else f"at {temperature}" for temperature in reports]
    yield table(["outcome", *at], rows)
    cut = sum(report["cut"] for report in reports.values())
    if cut:
        yield f"Histories longer than the model's context were cut from the left in {cut:,} programs."
    lacking = {problem: error for report in reports.values() for problem, error in report["lacking"].items()}
    if lacking:
        yield "Problems whose programs miss a file or a package here, with one error each:"
        yield "\n".join(f"- {problem}: {span(error)}" for problem, error in sorted(lacking.items(), key=_number))
    only = {problem: 0 for report in reports.values() for problem in report["only_repaired"]}
    for problem in only:
        only[problem] = sum(report["only_repaired"].get(problem, 0) for report in reports.values())
    if only:
        said = ", ".join(f"{count:,} of problem {problem}" for problem, count in sorted(only.items(), key=_number))
        yield f"Passed here, and always failed by the official checker: {said}."
    best = max(reports.values(), key=lambda report: report["pass_rate"])
    never = [problem for problem, rate in best["rates"].items() if not rate]
    hard = sorted((item for item in best["rates"].items() if 0 < item[1] < 1), key=lambda item: item[1])[:LONGEST]
    if never:
        of = f"{len(never)} of {len(best['rates'])} problems"
        at = "" if "-" in reports else " at the best temperature"
        yield f"Never solved{at}: {of}, {', '.join(never)}."
    if hard:
        yield f"The lowest shares of programs that passed{', of the others' if never else ''}:"
        yield table(["problem", "passed"], [[problem, f"{rate:.2%}"] for problem, rate in hard])


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _examples(executions: Mapping[str, Sequence[Execution]]) -> Iterator[str]:
    """The first passed and failed programs, each from a different problem."""
    for title, passed in (("## Programs that passed", True), ("## Programs that failed", False)):
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
