"""The output folder of an evaluation: its identity, a journal of verdicts, and the final files.

All files except timings.jsonl depend only on the samples, benchmark, settings and programs: no dates, no paths.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from etils import epath

from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import OUTCOMES, Verdict
from codegen_jax.mistaken_paths import contains
from codegen_jax.storage import locked, require_local, write_whole
from codegen_jax.strict_json import dumps

log = logging.getLogger(__name__)

IDENTITY = "evaluation.json"  # what is evaluated, and under which conditions
TIMINGS = "timings.jsonl"  # the journal: a line per verdict, in order of arrival; rewritten in sample order at the end
RESULTS, REPORT, REPORT_MARKDOWN = "results.jsonl", "report.json", "report.md"
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]+")  # in an object's repr; differs between runs


def fingerprint(records: Sequence[Any]) -> str:
    """The number of records and a hash of their content."""
    content = "\n".join(dumps(record) for record in records)
    return f"{len(records)} (sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]})"


class Results:
    """An output folder, locked against other processes until this one exits.

    Attributes:
        folder: its path.
        verdicts: verdicts by sample number, starting at 0.
    """

    def __init__(self, output: str, identity: Mapping[str, Any], samples: Sequence[Sample]):
        """Open a folder for an evaluation, or resume that evaluation.

        Args:
            output: a local folder, new or from the same evaluation.
            identity: values that must be equal to resume, by name.
            samples: the samples to judge.

        Raises:
            UserError: if the folder is in use, damaged, or contains another evaluation or anything else.
        """
        require_local("output", epath.Path(output))
        self.folder, self.samples = Path(output), samples
        self._require_evaluation_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._identity_file = _open_locked(self.folder / IDENTITY)
        self.verdicts = self._read_journal()
        self._check_identity(dict(identity))
        require(
            all(number in range(len(samples)) for number in self.verdicts),
            f"output: {self.folder / TIMINGS} is damaged (it has verdicts on samples that do not exist); remove the "
            "folder, or choose another one",
        )
        self._journal = open(self.folder / TIMINGS, "ab", buffering=0)  # noqa: SIM115 - stays open

    def add(self, number: int, verdict: Verdict) -> None:
        """Add a verdict and append it to the journal."""
        verdict = verdict._replace(error=ADDRESS.sub("0x...", verdict.error))
        self.verdicts[number] = verdict
        with _errors_name_folder(self.folder):
            _write(self._journal, self._line(number))

    def finish(self, report: Mapping[str, Any], markdown: str) -> None:
        """Write the final files once all verdicts exist: timings, results, and the report as JSON and Markdown."""
        numbers = range(len(self.samples))
        records = [
            sample.record | {"passed": verdict.outcome == "passed", "outcome": verdict.outcome, "error": verdict.error}
            for sample, verdict in zip(self.samples, map(self.verdicts.__getitem__, numbers))
        ]
        texts = {
            TIMINGS: "".join(map(self._line, numbers)),
            RESULTS: "".join(dumps(record) + "\n" for record in records),
            REPORT: dumps(report, indent=2) + "\n",
            REPORT_MARKDOWN: markdown,
        }
        with _errors_name_folder(self.folder):
            for name, text in texts.items():
                write_whole(epath.Path(self.folder / name), text)

    def _line(self, number: int) -> str:
        task = {"sample": number, "task_id": self.samples[number].task_id}
        return dumps(task | self.verdicts[number]._asdict()) + "\n"

    def _require_evaluation_folder(self) -> None:
        folder = self.folder
        if not folder.exists():
            return
        require(folder.is_dir(), f"output: {folder} is a file; choose a folder")
        names = sorted(file.name for file in folder.iterdir())
        require(
            not names or IDENTITY in names,
            f"output: {folder} {contains(names)}, but no evaluation; choose another folder",
        )

    def _check_identity(self, ours: dict[str, Any]) -> None:
        """Refuse another evaluation's folder, unless it has no verdicts yet."""
        self._identity_file.seek(0)
        text = self._identity_file.read()
        try:
            theirs = json.loads(text) if text else ours
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
            raise UserError(
                f"output: {self.folder / IDENTITY} is damaged or from another program; choose another folder"
            )
        for name in ours if self.verdicts else ():
            if ours[name] != theirs[name]:
                raise UserError(
                    f"output: {self.folder} contains another evaluation ({name}: {_format(theirs[name])} there, "
                    f"{_format(ours[name])} here); choose another folder"
                )
        if text and theirs == ours:
            return
        self._identity_file.truncate(0)
        try:
            with _errors_name_folder(self.folder):
                _write(self._identity_file, dumps(ours, indent=2) + "\n")
        except UserError:
            self._identity_file.truncate(0)
            raise

    def _read_journal(self) -> dict[int, Verdict]:
        """The verdicts on disk. A last line cut short by a kill or a full disk is dropped."""
        path = self.folder / TIMINGS
        if not path.exists():
            return {}
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        verdicts = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                verdict = Verdict(*(record[name] for name in Verdict._fields))
                if verdict.outcome not in OUTCOMES:
                    raise ValueError
                verdicts[int(record["sample"])] = verdict
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"output: {path}: line {number} is damaged; remove the folder, or choose another one"
                ) from None
        return verdicts


def _format(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else f"{value}"


def _write(file: FileIO, text: str) -> None:
    """Write unbuffered, so nothing is written again after an error."""
    content = text.encode()
    while content:
        content = content[file.write(content) :]


def _open_locked(path: Path) -> FileIO:
    """Open the identity file, locked against other processes."""
    file = locked(path)
    if file is None:
        raise UserError(f"output: {path.parent} is in use by another evaluation; wait for it, or choose another folder")
    return file


@contextmanager
def _errors_name_folder(folder: Path) -> Iterator[None]:
    """Turn a failed write into a `UserError` that names the folder; the system's message does not."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"output: {folder}: {error.strerror or error}; verdicts are kept, run the same command to resume"
        ) from error
