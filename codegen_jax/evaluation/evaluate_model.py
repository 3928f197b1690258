"""From a model to a report: samples are drawn and judged, and nothing is done twice, however often this is killed."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import groupby
from typing import Any

from tqdm import tqdm

from codegen_jax.evaluation.draw_samples import batches, draw_batch
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import Judges
from codegen_jax.evaluation.judged import Judged
from codegen_jax.evaluation.model_report import make_report
from codegen_jax.evaluation.model_report_page import PICTURE, in_words
from codegen_jax.evaluation.pass_at_k_picture import save_picture
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.protocol import Draw, Protocol, name_of
from codegen_jax.evaluation.published import row_of
from codegen_jax.evaluation.results import REPORT, REPORT_IN_WORDS, fingerprint
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.evaluation.verdicts import Verdict
from codegen_jax.inference.generate import Generator
from codegen_jax.strict_json import dumps

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 5.0  # of verdicts alone; samples are written when their batch is there


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, and how.

    Attributes:
        benchmark: its name.
        problems: all of it.
        limit: only so many of its problems, from the first.
        share: (i, n): this process has every n-th problem, from the i-th on; others have the rest, in the same folder.
        protocol: how samples are drawn.
        settings: under which conditions their programs run.
        ks: of pass@k.
    """

    benchmark: str
    problems: Sequence[Problem]
    limit: int
    share: tuple[int, int]
    protocol: Protocol
    settings: Settings
    ks: Sequence[int]

    @property
    def mine(self) -> list[int]:
        """The numbers of this process' problems."""
        part, parts = self.share
        return list(range(part - 1, self.limit, parts))


def evaluate_model(
    evaluation: Evaluation,
    identity: Mapping[str, Any],
    output: str,
    load: Callable[[], Generator],
    judges: Callable[[], Judges],
    export: bool = False,
) -> dict[str, Any] | None:
    """Draw and judge what is missing in a folder; and when all shares are there, write samples, results and report.

    Args:
        identity: of the model and of what it computes in, as `model_identity` gives it.
        output: local, gs:// or s3://; of this evaluation, or new.
        load: the model; called if samples are missing.
        judges: called if verdicts are missing.
        export: also write programs as the BigCode harness reads them.

    Returns:
        The content of report.json; None if other shares are missing.

    Raises:
        UserError: for a folder of another evaluation.
    """
    protocol, settings = evaluation.protocol, evaluation.settings
    folder = SampleFolder(
        output,
        {
            "benchmark": evaluation.benchmark,
            **identity,
            "problems": fingerprint([astuple(problem) for problem in evaluation.problems]),
            **{name: value for name, value in asdict(protocol).items() if name not in ("num_samples", "temperatures")},
            "timeout": settings.timeout,
            "unsafe": settings.unsafe,
        },
    )
    task_ids = {number: evaluation.problems[number].task_id for number in range(evaluation.limit)}
    mine = evaluation.mine
    folder.read(protocol.temperatures, {number: task_ids[number] for number in mine})
    draw_and_judge(evaluation, folder, load, judges)
    folder.read(protocol.temperatures, {number: task_ids[number] for number in task_ids.keys() - set(mine)})
    lacking = {draw.problem for draw in protocol.draws(list(task_ids)) if draw not in folder.verdicts}
    if lacking:
        part, parts = evaluation.share
        log.info(
            f"share {part}/{parts} is done; {len(lacking)} of {evaluation.limit} problems are left to the others, and "
            "whoever ends last writes the report"
        )
        return None
    return finish(evaluation, folder, export)


def finish(evaluation: Evaluation, folder: SampleFolder, export: bool) -> dict[str, Any]:
    """Write the files of an evaluation whose verdicts are all there; they are a function of these."""
    protocol, results = evaluation.protocol, dict[float, list[Judged]]()
    for temperature in protocol.temperatures:
        draws = [draw for draw in protocol.draws(range(evaluation.limit)) if draw.temperature == temperature]
        folder.finish(temperature, draws)
        results[temperature] = [
            Judged(
                evaluation.problems[draw.problem].task_id,
                draw.sample,
                folder.samples[draw]["completion"],
                folder.verdicts[draw].outcome,
                folder.verdicts[draw].error,
            )
            for draw in draws
        ]
        if export:
            programs = [
                [evaluation.problems[number].prompt + folder.samples[draw]["completion"] for draw in of_problem]
                for number, of_problem in groupby(draws, lambda draw: draw.problem)
            ]
            folder.write_file(folder.folder / f"generations_{name_of(temperature)}.json", dumps(programs) + "\n")
    report = make_report(folder.identity, evaluation.problems, results, evaluation.ks, evaluation.settings.sandbox)
    folder.write_file(folder.folder / REPORT, dumps(report, indent=2) + "\n")
    folder.write_file(folder.folder / REPORT_IN_WORDS, in_words(report, evaluation.problems, results))
    model, config = report["model"], report["settings"]["config"]
    is_whole = evaluation.limit == len(evaluation.problems) and evaluation.benchmark == "humaneval"
    paper = row_of(model, config) if is_whole else None
    with folder.writing():
        save_picture(results, f"{model} on {evaluation.benchmark}", paper, folder.folder / PICTURE)
    return report


def draw_and_judge(
    evaluation: Evaluation, folder: SampleFolder, load: Callable[[], Generator], judges: Callable[[], Judges]
) -> None:
    """Draw what is missing of this process' samples, and judge them while others are drawn."""
    problems, protocol, mine = evaluation.problems, evaluation.protocol, evaluation.mine
    wanted = protocol.draws(mine)
    missing = [draw for draw in wanted if draw not in folder.samples]
    unjudged = [draw for draw in wanted if draw in folder.samples and not _is_judged(folder, draw)]
    _tell_cost(protocol, len(mine), len(wanted), len(missing), len(unjudged))
    if not missing and not unjudged:
        return
    model = load() if missing else None
    folder.begin()  # not before: a model that can't be loaded leaves no folder that refuses the next command
    progress = _Progress(len(wanted), len(missing))
    with judges() as judging, progress.bar:

        def judge(draw: Draw) -> None:
            problem = problems[draw.problem]
            judging.submit(draw, problem, problem.prompt + folder.samples[draw]["completion"])

        def add(draw: Draw, verdict: Verdict) -> None:
            folder.add_verdict(draw, verdict)
            progress.judged += 1

        for draw in unjudged:
            judge(draw)
        # the batches of a run that nothing disturbed: what is drawn again is drawn beside the same others
        for whole in batches(wanted, model.max_rows if model else 1):
            batch = [draw for draw in whole if draw not in folder.samples]
            if model is None or not batch:
                continue
            records = draw_batch(model, problems, protocol, batch)
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


def _tell_cost(protocol: Protocol, problems: int, wanted: int, missing: int, unjudged: int) -> None:
    what = f"{problems} problems x {protocol.num_samples} samples"
    if len(protocol.temperatures) > 1:
        what += f" x {len(protocol.temperatures)} temperatures"
    there = f", {wanted - missing} of them are there already" if missing < wanted else ""
    judged = f"; {unjudged} wait for their verdict" if unjudged else ""
    log.info(f"{what}: {wanted:,} samples{there}{judged}")
    if missing:
        log.info(f"{missing:,} are to be drawn, at most {missing * protocol.max_new_tokens:,} tokens")


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
