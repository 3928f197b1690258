"""From a model to a report: draw and judge samples, resuming without repeated work if the process is killed."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from codegen_jax.evaluation.benchmark import Benchmark, batches
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import Judges
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.evaluation.results import fingerprint
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.evaluation.verdicts import Verdict
from codegen_jax.inference.generator import Generator
from codegen_jax.progress import Progress

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 5.0  # for verdicts; samples are written as soon as their batch is complete


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how.

    Attributes:
        benchmark: the benchmark, with all of its tasks.
        limit: evaluate only the first `limit` tasks.
        share: (i, n): this process handles every n-th task, starting with the i-th; other processes handle the rest
            and use the same folder.
        protocol: how samples are drawn.
        settings: the conditions under which programs run.
    """

    benchmark: Benchmark
    limit: int
    share: tuple[int, int]
    protocol: Protocol
    settings: Settings

    @property
    def own_tasks(self) -> list[int]:
        """Indices of this process's tasks."""
        part, parts = self.share
        return list(range(part - 1, self.limit, parts))


def evaluate_model(
    evaluation: Evaluation,
    identity: Mapping[str, Any],
    output: str,
    load: Callable[[], Generator],
    judges: Callable[[], Judges],
) -> dict[str, Any] | None:
    """Draw and judge the samples missing from a folder. Once all shares are done, write samples, results and report.

    Args:
        identity: the values that identify the model (see `model_identity`) and its computation.
        output: a local, gs:// or s3:// folder; new, or from this evaluation.
        load: loads the model; called only if samples are missing.
        judges: starts the judges; called only if samples or verdicts are missing.

    Returns:
        The content of report.json; None if other shares are not done yet.

    Raises:
        UserError: if the folder belongs to another evaluation.
    """
    benchmark, protocol, settings = evaluation.benchmark, evaluation.protocol, evaluation.settings
    excluded = {"num_samples", "temperatures"} | benchmark.unused_fields
    folder = SampleFolder(
        output,
        {
            "benchmark": benchmark.name,
            **identity,
            **benchmark.conditions,  # before the problems, which depend on the mode, so an error names the mode
            "problems": fingerprint(benchmark.tasks),
            **{name: value for name, value in asdict(protocol).items() if name not in excluded},
            "timeout": settings.timeout,
            "unsafe": settings.unsafe,
        },
        benchmark.fields,
    )
    fields_by_task = {task: benchmark.task_fields(task) for task in range(evaluation.limit)}
    own_tasks = evaluation.own_tasks
    folder.read(protocol.temperatures, {task: fields_by_task[task] for task in own_tasks})
    draw_and_judge(evaluation, folder, load, judges)
    folder.read(protocol.temperatures, {task: fields_by_task[task] for task in fields_by_task.keys() - set(own_tasks)})
    unfinished = {draw.problem for draw in protocol.draws(list(fields_by_task)) if draw not in folder.verdicts}
    if unfinished:
        part, parts = evaluation.share
        log.info(
            f"share {part}/{parts} is done; other shares have {len(unfinished)} of {evaluation.limit} {benchmark.unit} "
            "left, and the last one to finish writes the report"
        )
        return None
    draws = {
        temperature: list(found)
        for temperature, found in groupby(protocol.draws(list(fields_by_task)), lambda draw: draw.temperature)
    }
    for temperature, found in draws.items():
        folder.finish(temperature, found)
    return benchmark.finish(folder, draws, settings)


def draw_and_judge(
    evaluation: Evaluation, folder: SampleFolder, load: Callable[[], Generator], judges: Callable[[], Judges]
) -> None:
    """Draw this process's missing samples, judging them in the background while others are drawn."""
    benchmark, protocol, own_tasks = evaluation.benchmark, evaluation.protocol, evaluation.own_tasks
    wanted = protocol.draws(own_tasks)
    missing = [draw for draw in wanted if draw not in folder.samples]
    unjudged = [draw for draw in wanted if draw in folder.samples and not _is_judged(folder, draw)]
    _log_cost(evaluation, len(wanted), missing, len(unjudged))
    if not missing and not unjudged:
        return
    model = load() if missing else None
    folder.begin()  # only now: after a failed load, the folder must not refuse other settings
    progress = _Progress(len(wanted), len(missing))
    with judges() as judging, progress.bar:

        def judge(draw: Draw) -> None:
            judging.submit(draw, *benchmark.program(draw.problem, folder.samples[draw]))

        def add(draw: Draw, verdict: Verdict) -> None:
            folder.add_verdict(draw, verdict)
            progress.judged += 1

        for draw in unjudged:
            judge(draw)
        # the same batches as in an uninterrupted run, so a redrawn sample is in the same batch
        for full_batch in batches(benchmark, wanted, model.max_rows if model else 1):
            batch = [draw for draw in full_batch if draw not in folder.samples]
            if model is None or not batch:
                continue
            records = benchmark.draw(model, protocol, batch)
            folder.add_batch(batch, records)
            for draw in batch:
                judge(draw)
            for draw, verdict in judging.verdicts():
                add(draw, verdict)
            progress.add_samples(len(batch), sum(record["tokens"] for record in records))
            progress.show()
        progress.bar.close()
        written = time.monotonic()
        waiting = len(missing) + len(unjudged) - progress.judged
        with Progress("judging", len(wanted), "program", initial=len(wanted) - waiting) as judged:
            for draw, verdict in judging.finish():
                add(draw, verdict)
                judged.update()
                if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                    folder.write()
                    written = time.monotonic()
        folder.write()


def _is_judged(folder: SampleFolder, draw: Draw) -> bool:
    return draw in folder.verdicts and folder.verdicts[draw].outcome != "sandbox error"


def _log_cost(evaluation: Evaluation, wanted: int, missing: Sequence[Draw], unjudged: int) -> None:
    benchmark, protocol = evaluation.benchmark, evaluation.protocol
    what = f"{len(evaluation.own_tasks)} {benchmark.unit} x {protocol.num_samples} samples"
    if len(protocol.temperatures) > 1:
        what += f" x {len(protocol.temperatures)} temperatures"
    existing = f", {wanted - len(missing):,} already drawn" if len(missing) < wanted else ""
    pending = f", {unjudged:,} of them not judged yet" if unjudged else ""
    log.info(f"{what}: {wanted:,} samples{existing}{pending}")
    if missing:
        tokens = sum(benchmark.max_tokens(protocol, draw.problem) for draw in missing)
        log.info(f"{len(missing):,} samples to draw, at most {tokens:,} tokens in total")


class _Progress:
    """A progress bar of samples with the rate of verdicts. After the first batch, it logs the estimated total time."""

    def __init__(self, wanted: int, missing: int):
        self.bar = Progress("generating", wanted, "sample", initial=wanted - missing, shown=missing > 0)
        self.missing, self.drawn, self.judged, self.began = missing, 0, 0, time.monotonic()

    def add_samples(self, count: int, tokens: int) -> None:
        seconds = time.monotonic() - self.began
        if not self.drawn and count < self.missing:
            minutes = math.ceil(seconds * self.missing / count / 60)
            log.info(
                f"the first {count} samples took {seconds:.0f} s with compilation ({tokens / count:.0f} tokens per "
                f"sample); estimated total: {f'{minutes} minutes' if minutes > 1 else 'a minute or less'}"
            )
        self.drawn += count
        self.bar.update(count)

    def show(self) -> None:
        rate = self.judged / (time.monotonic() - self.began)
        self.bar.note(f"{self.judged} judged, {rate:.1f} verdicts/s")
