"""The readable report of a model's evaluation (report.md): results, published figures, outcomes and examples."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codegen_jax.evaluation.judged import Judged, format_temperature
from codegen_jax.evaluation.markdown import fenced, page, table
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.published import (
    EVALPLUS,
    EVALPLUS_SOURCE,
    comparison_rows,
    find_size,
    format_percent,
    source_notes,
)
from codegen_jax.evaluation.tally import tally

PICTURE = "pass_at_k.png"
MAX_ROWS = 10  # rows shown of a longer table
EXAMPLES = 2  # number of passed samples shown, and the same number of failed ones
ERROR_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")  # the start of an exception's last line


def to_markdown(
    report: Mapping[str, Any], problems: Sequence[Problem], results: Mapping[float, Sequence[Judged]]
) -> str:
    """The content of report.md: Markdown, in ASCII.

    Args:
        report: the report from `make_report`.
        problems: all problems of the benchmark; their prompts are shown with the examples.
        results: the results that the report was made from, by temperature.
    """
    judged = [(temperature, one) for temperature, found in results.items() for one in found]
    is_whole = report["attempted"] == report["problems"]
    paragraphs = [
        *_head(report),
        *_pass_at_k(report),
        *(_published_results(report) if is_whole else ()),
        *_outcomes(report, judged),
        *_hardest(judged),
        *_examples(judged, {problem.task_id: problem.prompt for problem in problems}),
    ]
    return page(paragraphs)


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    settings, problems, attempted = report["settings"], report["problems"], report["attempted"]
    unsafe = " (UNSAFE: run without a sandbox)" if settings["unsafe"] else ""
    yield f"# {report['benchmark']}: {report['model']}{unsafe}"
    scalars = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
    # revision is empty for a local folder in Hugging Face's format
    shown = [f"{name} {value}" for name, value in scalars.items() if name not in ("unsafe", "timeout") and value != ""]
    limit = "derived from the canonical solution" if settings["timeout"] is None else f"{settings['timeout']:g} s"
    yield f"Settings: {', '.join(shown)}. Sandbox: {', '.join(report['sandbox']) or 'none'}. CPU time limit: {limit}."
    if attempted < problems:
        yield (
            f"**{problems - attempted} of the benchmark's {problems} problems have no samples. pass@k is the mean over "
            f"the other {attempted} and is not comparable with results for the whole benchmark.**"
        )
    broken = sum(outcomes["sandbox error"] for outcomes in report["outcomes"].values())
    if broken:
        yield (
            f"**The sandbox failed for {broken} programs. They count as not passed; run the same command again "
            "to retry.**"
        )


def _pass_at_k(report: Mapping[str, Any]) -> Iterator[str]:
    best = report["best"]
    if best:
        rows = [
            [
                temperature,
                f"{report['samples'][temperature]:,}",
                *(_with_interval(report, temperature, k) for k in best),
            ]
            for temperature in report["pass_at_k"]
        ]
        if len(rows) > 1:
            rows.append(
                [
                    "best",
                    "",
                    *(f"**{one['value']:.2%}** at {format_temperature(one['temperature'])}" for one in best.values()),
                ]
            )
        yield table(["temperature", "samples", *(f"pass@{k}" for k in best)], rows)
        yield "In brackets: the 95% interval (bootstrap over problems)."
    for k, reason in report["left_out"].items():
        yield f"No pass@{k}: {reason}."
    yield f"![pass@k as a function of k]({PICTURE})"


def _with_interval(report: Mapping[str, Any], temperature: str, k: str) -> str:
    if k not in report["pass_at_k"][temperature]:
        return "-"
    low, high = report["intervals"][temperature][k]
    return f"{report['pass_at_k'][temperature][k]:.2%} [{low:.1%}, {high:.1%}]"


def _published_results(report: Mapping[str, Any]) -> Iterator[str]:
    """Published results on the whole benchmark."""
    yield from _paper_comparison(report)
    if report["benchmark"] == "humaneval":
        yield from _evalplus_comparison(report)


def _paper_comparison(report: Mapping[str, Any]) -> Iterator[str]:
    rows = comparison_rows(report["benchmark"], report["settings"]["config"])
    ks = [k for k in rows[0].pass_at_k if str(k) in report["best"]] if rows else []
    if not ks:
        return
    ours = ["**this model**", *(f"**{report['best'][str(k)]['value']:.2%}**" for k in ks)]
    yield "## Comparison with the paper"
    published = [[row.name, *(format_percent(row.pass_at_k[k]) for k in ks)] for row in rows]
    yield table(["best temperature per k", *(f"pass@{k}" for k in ks)], [ours, *published])
    yield "The paper's results are from 200 samples per problem with top_p 0.95 at temperatures 0.2, 0.6 and 0.8."
    yield from source_notes(row.pass_at_k[k] for row in rows for k in ks)


def _evalplus_comparison(report: Mapping[str, Any]) -> Iterator[str]:
    """EvalPlus' greedy results, if this model was also run greedily."""
    size = find_size(report["settings"]["config"])
    rows = {name: figures for name, figures in EVALPLUS.items() if size in (name, None)}
    greedy = report["pass_at_k"].get("0", {})
    if "1" not in greedy or not rows:
        return
    yield "## Comparison with EvalPlus (greedy)"
    published = [
        [f"CodeGen-Mono {name}", *(f"{percent:.1f}%" for percent in figures)] for name, figures in rows.items()
    ]
    yield table(["pass@1", "HumanEval", "HumanEval+"], [["**this model**", f"**{greedy['1']:.1%}**", "-"], *published])
    yield f"Source: {EVALPLUS_SOURCE}. HumanEval+ has additional tests, which are not run here."


def _outcomes(report: Mapping[str, Any], judged: Sequence[tuple[float, Judged]]) -> Iterator[str]:
    yield "## Outcomes"
    temperatures = list(report["outcomes"])
    counts = {
        outcome: [report["outcomes"][at][outcome] for at in temperatures]
        for outcome in report["outcomes"][temperatures[0]]
    }
    rows = [[outcome, *(f"{count:,}" for count in found)] for outcome, found in counts.items() if any(found)]
    yield table(["outcome", *(f"at {at}" for at in temperatures)], rows)
    matches = (ERROR_TYPE.match(one.error) for _, one in judged if one.outcome != "passed")
    types = Counter(match[0] for match in matches if match)
    if types:
        yield f"The most common errors{' over all temperatures' if len(temperatures) > 1 else ''}:"
        yield table(["error", "samples"], [[f"`{name}`", f"{count:,}"] for name, count in _most_common(types)])


def _most_common(count: Counter[str]) -> list[tuple[str, int]]:
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:MAX_ROWS]


def _hardest(judged: Sequence[tuple[float, Judged]]) -> Iterator[str]:
    counted = tally([one for _, one in judged])
    rates = counted.rates
    never = [task_id for task_id, rate in rates.items() if not rate]
    hard = sorted((task_id for task_id, rate in rates.items() if 0 < rate < 1), key=rates.__getitem__)[:MAX_ROWS]
    if never or hard:
        yield "## Hardest problems"
    if never:
        yield f"{len(never)} of {len(rates)} problems were never solved: {', '.join(never)}."
    if hard:
        yield f"The lowest pass rates{' of the other problems' if never else ''}:"
        count = {task_id: f"{c:,} of {n:,}" for task_id, n, c in zip(*counted)}
        yield table(["problem", "passed", ""], [[task_id, count[task_id], f"{rates[task_id]:.2%}"] for task_id in hard])


def _examples(judged: Sequence[tuple[float, Judged]], prompts: Mapping[str, str]) -> Iterator[str]:
    """The first passed and the first failed samples, each from a different problem."""
    for title, passed in (("## Passed samples", True), ("## Failed samples", False)):
        first = dict[str, tuple[float, Judged]]()
        for temperature, one in judged:
            if (one.outcome == "passed") == passed:
                first.setdefault(one.task_id, (temperature, one))
        if first:
            yield title
        for temperature, one in list(first.values())[:EXAMPLES]:
            yield f"{one.task_id}, sample {one.sample} at temperature {format_temperature(temperature)}: {one.outcome}"
            yield fenced(prompts[one.task_id] + one.completion, "python")
            if one.error:
                yield fenced(one.error, "text")
