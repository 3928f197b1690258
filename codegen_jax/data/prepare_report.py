"""The report of a preparation: documents and bytes after each stage, reasons for drops, and token counts, by source.

Steps count as they run, datatrove saves each task's counts to disk, and the report adds them up.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import MetricStatsDict

from codegen_jax.data.inputs import Inputs
from codegen_jax.data.shards import Skipped

REPORT = "report.json"
TALLY = "TALLY"
CUT, REARRANGED, WHOLE = "examples cut", "documents rearranged", "documents left whole"  # statistics
DROPPED = "dropped_"  # prefix of the datatrove statistics that count drops by reason


class Tally(PipelineStep):
    """Counts the documents that leave a stage, by source, and passes them on."""

    type = TALLY

    def __init__(self, stage: str):
        self.name = stage
        super().__init__()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents: Counter[str] = Counter()
        nbytes: Counter[str] = Counter()
        for document in data:
            documents[document.metadata["source"]] += 1
            nbytes[document.metadata["source"]] += document.metadata["bytes"]
            yield document
        for source in documents:
            self.stat_update(f"documents {source}", value=documents[source])
            self.stat_update(f"bytes {source}", value=nbytes[source])


def record_read(work: Path, rank: int, shard: str, documents: int, skipped: Skipped) -> None:
    """Record what a task has read, for the report."""
    (work / "read").mkdir(parents=True, exist_ok=True)
    first = {reason: {"shard": shard, **where} for reason, where in skipped.first.items()}
    (work / f"read/{rank:05d}.json").write_text(json.dumps({"shard": shard, "documents": documents, "first": first}))


def make_report(statistics: Path, work: Path, inputs: Inputs) -> dict[str, Any]:
    """Compute the report of a finished preparation.

    Args:
        statistics: folder with datatrove's statistics of the tokens pass: one file per task, one entry per pipeline
            step (`Tally` and others).
        work: folder with the records written by `record_read`.
        inputs: the inputs of the preparation.

    Returns:
        A dict with these entries:
        "inputs": {"files": {suffix: files}, "bytes", "left": {reason: {"files", "first"}},
            "without_documents": shards}, where "left" is about skipped files,
        "first": {reason: {"shard", "line", "starts"}}, the first line dropped while reading, for each reason,
        "stages": a list of {"stage", "sources": {source: {"documents", "bytes"}}, "dropped": {reason: documents}}, the
            output of each stage and the reasons for its drops,
        "tokens": {source: tokens}, including eos,
        "long": {"cut": number, "examples": [{"shard", "line", "tokens", "cut"}]}, if examples were longer than the
            context: which ones, up to 1,000 per shard, and whether they were cut or dropped,
        "infill": {"rearranged": documents, "too_long": documents}, if documents were rearranged for
            fill-in-the-middle; those too long for a packed row were then left as they are.
    """
    tasks = [json.loads(file.read_text()) for file in sorted(statistics.glob("*.json"))]
    stages: list[dict[str, Any]] = []
    tokens: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for step in zip(*tasks, strict=True):  # one step of the pipeline, over all tasks
        totals: Counter[str] = Counter()
        for task in step:
            totals.update({name: stat.total for name, stat in MetricStatsDict.from_dict(task["stats"]).items()})
        reasons = {name.removeprefix(DROPPED): n for name, n in totals.items() if name.startswith(DROPPED)}
        if not reasons and totals["dropped"]:
            reasons = {"near-duplicate": totals["dropped"]}  # MinhashDedupFilter records no reason
        dropped.update(reasons)
        counts.update({name: totals[name] for name in (CUT, REARRANGED, WHOLE) if name in totals})
        tokens.update({name.removeprefix("tokens "): n for name, n in totals.items() if name.startswith("tokens ")})
        kind, _, stage = step[0]["name"].partition(": ")
        if kind == TALLY:
            sources = sorted(name.removeprefix("documents ") for name in totals if name.startswith("documents "))
            passed = {s: {"documents": totals[f"documents {s}"], "bytes": totals[f"bytes {s}"]} for s in sources}
            stages.append({"stage": stage, "sources": passed, "dropped": dict(dropped.most_common())})
            dropped.clear()
    read = [json.loads(file.read_text()) for file in sorted((work / "read").glob("*.json"))]
    first: dict[str, Any] = {}
    for task in read:
        first = task["first"] | first
    empty = [task["shard"] for task in read if not task["documents"]]
    long = [example for file in sorted((work / "long").glob("*.json")) for example in json.loads(file.read_text())]
    return {
        "inputs": {**inputs.record(), "without_documents": empty},
        "first": first,
        "stages": stages,
        "tokens": dict(sorted(tokens.items())),
        **({"long": {"cut": counts[CUT], "examples": long}} if long else {}),
        **({"infill": {"rearranged": counts[REARRANGED], "too_long": counts[WHOLE]}} if counts[REARRANGED] else {}),
    }


def load_report(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / REPORT).read_text(encoding="utf-8"))


def total(stage: dict[str, Any], field: str) -> int:
    """Documents or bytes that a stage passed on, summed over all sources."""
    return sum(counts[field] for counts in stage["sources"].values())


def table(report: dict[str, Any]) -> str:
    """The report as text: one row per source with the output of each stage, then the number of drops by reason."""
    stages, tokens = report["stages"], report["tokens"]
    rows = [["source", *(f"{stage['stage']}" for stage in stages), "tokens"]]
    for source in stages[0]["sources"]:
        counts = [stage["sources"].get(source, {"documents": 0, "bytes": 0}) for stage in stages]
        rows.append([source, *map(_cell, counts), f"{tokens.get(source, 0):,}"])
    sums = [{field: total(stage, field) for field in ("documents", "bytes")} for stage in stages]
    rows.append(["all", *map(_cell, sums), f"{sum(tokens.values()):,}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)) for row in rows]
    for stage in stages:
        dropped_by = "dropped while reading" if stage["stage"] == "read" else f"dropped by {stage['stage']}"
        for reason, count in stage["dropped"].items():
            if first := report["first"].get(reason):
                start = f"line {first['line']} of {first['shard']}: {first['starts'][:60]!r}"
                lines.append(f"{dropped_by}: {_plural(count, 'line')} ({reason}); the first is {start}")
            else:
                lines.append(f"{dropped_by}: {_plural(count, 'document')} ({reason})")
    if cut := report.get("long", {}).get("cut"):
        lines.append(f"cut to the context: {_plural(cut, 'example')}, listed in {REPORT}")
    if infill := report.get("infill"):
        rearranged = infill["rearranged"] - infill["too_long"]
        lines.append(f"rearranged for fill-in-the-middle: {_plural(rearranged, 'document')}")
    if empty := report["inputs"]["without_documents"]:
        lines.append(f"no documents in {_plural(len(empty), 'shard')}, such as {empty[0]}")
    return "\n".join(lines)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _cell(counts: dict[str, int]) -> str:
    return f"{counts['documents']:,} ({counts['bytes'] / 1e6:,.1f} MB)"
