"""Compare evaluations: pass@k of each, and the problems that each solves more or less often than the first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codegen_jax.errors import require
from codegen_jax.evaluation.intervals import paired_difference
from codegen_jax.evaluation.judged import Judged, format_temperature
from codegen_jax.evaluation.tally import Tally, tally

MAX_LISTED = 10  # problems listed by name

Results = Mapping[float | None, Sequence[Judged]]


def compare(runs: Mapping[str, Results], ks: Sequence[int]) -> dict[str, Any]:
    """Summarize the evaluations and how each differs from the first.

    Args:
        runs: the results returned by `read_results`, by run name; at least two.
        ks: values of k for pass@k, each at least 1.

    Returns:
        Plain values: "first", the name of the first run; "runs", by name and temperature: pass_at_k and intervals by k,
        problems, samples; "differences", one entry per other run and temperature shared with the first: run,
        temperature, the number of problems that both have, the difference in pass@1 over those problems and its
        interval, and won and lost, the per-problem differences by task_id, largest first.

    Raises:
        UserError: if a run has no problem in common with the first.
    """
    tallies = {
        run: {format_temperature(at): tally(judged) for at, judged in results.items()} for run, results in runs.items()
    }
    (first, base), *others = tallies.items()
    differences = [
        {"run": run, "temperature": at} | _difference(f"{run} and {first}", base[at], other[at])
        for run, other in others
        for at in base
        if at in other
    ]
    measured = {run: {at: _measure(one, ks) for at, one in found.items()} for run, found in tallies.items()}
    return {"first": first, "runs": measured, "differences": differences}


def _measure(counted: Tally, ks: Sequence[int]) -> dict[str, Any]:
    return {
        "pass_at_k": counted.pass_at_k(ks),
        "intervals": counted.intervals(ks),
        "problems": len(counted.task_ids),
        "samples": sum(counted.samples),
    }


def _difference(names: str, first: Tally, other: Tally) -> dict[str, Any]:
    before, after = first.rates, other.rates
    changes = {task_id: after[task_id] - before[task_id] for task_id in before if task_id in after}
    require(bool(changes), f"{names}: have no problem in common; give evaluations of the same benchmark")
    difference, interval = paired_difference(before, after)
    by_size = sorted(changes.items(), key=lambda change: -abs(change[1]))
    return {
        "problems": len(changes),
        "difference": difference,
        "interval": list(interval),
        "won": {task_id: change for task_id, change in by_size if change > 0},
        "lost": {task_id: change for task_id, change in by_size if change < 0},
    }


def to_text(comparison: Mapping[str, Any], ks: Sequence[int]) -> str:
    """Format the comparison as text: an aligned table, and a paragraph per difference."""
    head = ["run", "T", "problems", "samples", *(f"pass@{k}" for k in ks)]
    rows = [
        [run, at, str(one["problems"]), str(one["samples"]), *(_cell(one, str(k)) for k in ks)]
        for run, found in comparison["runs"].items()
        for at, one in found.items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
    paragraphs = ["\n".join(lines), "In brackets: 95% intervals (bootstrap over problems)."]
    for run in list(comparison["runs"])[1:]:
        shared = [one for one in comparison["differences"] if one["run"] == run]
        paragraphs += ["\n".join(_lines(one, comparison["first"])) for one in shared]
        if not shared:
            paragraphs.append(f"{run} vs. {comparison['first']}: no temperature in common.")
    return "\n\n".join(paragraphs)


def _cell(one: Mapping[str, Any], k: str) -> str:
    if k not in one["pass_at_k"]:
        return "-"
    low, high = one["intervals"][k]
    return f"{one['pass_at_k'][k]:.2%} [{low:.1%}, {high:.1%}]"


def _lines(one: Mapping[str, Any], first: str) -> Iterator[str]:
    low, high = one["interval"]
    at = "" if one["temperature"] == "-" else f" at temperature {one['temperature']}"
    yield f"{one['run']} vs. {first}{at}: difference in pass@1 over the {one['problems']} problems in both"
    yield f"  {_points(one['difference'])} percentage points [{_points(low)}, {_points(high)}]"
    for name in ("won", "lost"):
        changes = one[name]
        shown = ", ".join(f"{task_id} {_points(change)}" for task_id, change in list(changes.items())[:MAX_LISTED])
        more = f", and {len(changes) - MAX_LISTED} more" if len(changes) > MAX_LISTED else ""
        yield f"  {name} {len(changes)}{': ' if changes else ''}{shown}{more}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
