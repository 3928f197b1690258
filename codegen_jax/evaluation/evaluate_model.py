"""From a model to a report: samples are drawn and judged, and nothing is done twice, however often this is killed."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from tqdm import tqdm

from codegen_jax.evaluation.benchmark import Benchmark, batches
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import Judges
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.evaluation.results import fingerprint
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.evaluation.verdicts import Verdict
from codegen_jax.inference.generate import Generator

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 5.0  # of verdicts alone; samples are written when their batch is there


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, and how.

    Attributes:
        benchmark: with all of its tasks.
        limit: only so many of them, from the first.
        share: (i, n): this process has every n-th task, from the i-th on; others have the rest, in the same folder.
        protocol: how samples are drawn.
        settings: under which conditions their programs run.
    """

    benchmark: Benchmark
    limit: int
    share: tuple[int, int]
    protocol: Protocol
    settings: Settings

    @property
    def mine(self) -> list[int]:
        """The numbers of this process' tasks."""
        part, parts = self.share
        return list(range(part - 1, self.limit, parts))


def evaluate_model(
    evaluation: Evaluation,
    identity: Mapping[str, Any],
    output: str,
    load: Callable[[], Generator],
    judges: Callable[[], Judges],
) -> dict[str, Any] | None:
    """Draw and judge what is missing in a folder; and when all shares are there, write samples, results and report.

    Args:
        identity: of the model and of what it computes in, as `model_identity` gives it.
        output: local, gs:// or s3://; of this evaluation, or new.
        load: the model; called if samples are missing.
        judges: called if verdicts are missing.

    Returns:
        The content of report.json; None if other shares are missing.

    Raises:
        UserError: for a folder of another evaluation.
    """
    benchmark, protocol, settings = evaluation.benchmark, evaluation.protocol, evaluation.settings
    left_out = {"num_samples", "temperatures"} | benchmark.own_limits
    folder = SampleFolder(
        output,
        {
            "benchmark": benchmark.name,
            **identity,
            **benchmark.conditions,  # before the problems, which are others in another mode
            "problems": fingerprint(benchmark.tasks),
            **{name: value for name, value in asdict(protocol).items() if name not in left_out},
            "timeout": settings.timeout,
            "unsafe": settings.unsafe,
        },
        benchmark.fields,
    )
    places = {task: benchmark.place(task) for task in range(evaluation.limit)}
    mine = evaluation.mine
    folder.read(protocol.temperatures, {task: places[task] for task in mine})
    draw_and_judge(evaluation, folder, load, judges)
    folder.read(protocol.temperatures, {task: places[task] for task in places.keys() - set(mine)})
    lacking = {draw.problem for draw in protocol.draws(list(places)) if draw not in folder.verdicts}
    if lacking:
        part, parts = evaluation.share
        log.info(
            f"share {part}/{parts} is done; {len(lacking)} of {evaluation.limit} {benchmark.unit} are left to the "
            "others, and whoever ends last writes the report"
        )
        return None
    draws = {
        temperature: list(found)
        for temperature, found in groupby(protocol.draws(list(places)), lambda draw: draw.temperature)
    }
    for temperature, found in draws.items():
        folder.finish(temperature, found)
    return benchmark.finish(folder, draws, settings)


def draw_and_judge(
    evaluation: Evaluation, folder: SampleFolder, load: Callable[[], Generator], judges: Callable[[], Judges]
) -> None:
    """Draw what is missing of this process' samples, and judge them while others are drawn."""
    benchmark, protocol, mine = evaluation.benchmark, evaluation.protocol, evaluation.mine
    wanted = protocol.draws(mine)
    missing = [draw for draw in wanted if draw not in folder.samples]
    unjudged = [draw for draw in wanted if draw in folder.samples and not _is_judged(folder, draw)]
    _tell_cost(evaluation, len(wanted), missing, len(unjudged))
    if not missing and not unjudged:
        return
    model = load() if missing else None
    folder.begin()  # not before: a model that can't be loaded leaves no folder that refuses the next command
    progress = _Progress(len(wanted), len(missing))
    with judges() as judging, progress.bar:

        def judge(draw: Draw) -> None:
            judging.submit(draw, *benchmark.program(draw.problem, folder.samples[draw]))

        def add(draw: Draw, verdict: Verdict) -> None:
            folder.add_verdict(draw, verdict)
            progress.judged += 1

        for draw in unjudged:
            judge(draw)
        # the batches of a run that nothing disturbed: what is drawn again is drawn beside the same others
        for whole in batches(benchmark, wanted, model.max_rows if model else 1):
            batch = [draw for draw in whole if draw not in folder.samples]
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
        written = time.monotonic()
        for draw, verdict in judging.finish():
            add(draw, verdict)
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                folder.write()
                progress.show()
                written = time.monotonic()
        folder.write()
        progress.show()


def _is_judged(folder: SampleFolder, draw: Draw) -> bool:
    return draw in folder.verdicts and folder.verdicts[draw].outcome != "sandbox error"


def _tell_cost(evaluation: Evaluation, wanted: int, missing: Sequence[Draw], unjudged: int) -> None:
    benchmark, protocol = evaluation.benchmark, evaluation.protocol
    what = f"{len(evaluation.mine)} {benchmark.unit} x {protocol.num_samples} samples"
    if len(protocol.temperatures) > 1:
        what += f" x {len(protocol.temperatures)} temperatures"
    there = f", {wanted - len(missing)} of them are there already" if len(missing) < wanted else ""
    judged = f"; {unjudged} wait for their verdict" if unjudged else ""
    log.info(f"{what}: {wanted:,} samples{there}{judged}")
    if missing:
        tokens = sum(benchmark.most_tokens(protocol, draw.problem) for draw in missing)
        log.info(f"{len(missing):,} are to be drawn, at most {tokens:,} tokens")


class _Progress:
    """A bar of samples, with the pace of verdicts beside it; and once, after the first batch, what all will take."""

    def __init__(self, wanted: int, missing: int):
        self.bar = tqdm(total=wanted, initial=wanted - missing, unit="sample", disable=None, smoothing=0.1)
        self.missing, self.drawn, self.judged, self.began = missing, 0, 0, time.monotonic()

    def add_samples(self, count: int, tokens: int) -> None:
        seconds = time.monotonic() - self.began
        if not self.drawn and count < self.missing:
            minutes = math.ceil(seconds * self.missing / count / 60)
            log.info(
                f"the first {count} took {seconds:.0f} s with compilation and {tokens / count:.0f} tokens each: "
                f"{f'about {minutes} minutes' if minutes > 1 else 'a minute or less'} for all on this machine"
            )
        self.drawn += count
        self.bar.update(count)

    def show(self) -> None:
        rate = self.judged / (time.monotonic() - self.began)
        self.bar.set_postfix_str(f"{self.judged} judged, {rate:.1f} verdict/s")
