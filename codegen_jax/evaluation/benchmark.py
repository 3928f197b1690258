"""The interface of a benchmark: how to draw a sample, which program it becomes, and how to report the results."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.inference.generator import Generator


class Benchmark(ABC):
    """The benchmark interface that `evaluate_model` uses. Samples are drawn per task; tasks are numbered from 0.

    Attributes:
        name: the name used in reports.
        unit: plural noun for its tasks.
        fields: the fields of a sample's record.
        batches_of_rows: number of samples in a batch per row that the model decodes at a time.
        unused_fields: fields of `Protocol` that do not apply, since each task sets its own limits.
    """

    name: str
    unit: str = "problems"
    fields: frozenset[str]
    batches_of_rows: int = 1
    unused_fields: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def tasks(self) -> Sequence[Any]:
        """All tasks of the benchmark, as plain values; its fingerprint is computed from them."""

    @property
    def conditions(self) -> dict[str, Any]:
        """Other benchmark-specific values that determine samples and verdicts, by name."""
        return {}

    @abstractmethod
    def task_fields(self, task: int) -> dict[str, Any]:
        """The record fields that identify the task."""

    @abstractmethod
    def batch_key(self, draw: Draw) -> Hashable:
        """Consecutive samples with equal keys may share a batch."""

    @abstractmethod
    def max_tokens(self, protocol: Protocol, task: int) -> int:
        """The maximum number of tokens in one sample of the task."""

    @abstractmethod
    def draw(self, model: Generator, protocol: Protocol, batch: Sequence[Draw]) -> list[dict[str, Any]]:
        """Draw a batch of samples and return their records.

        The text depends on the model, seed, task, sample number and protocol, not on other samples in the batch. The
        last digits of the log-probability depend on the batch shape, as with any floating-point sum; in bfloat16 they
        are coarse enough to change an occasional token, and with it the text.
        """

    @abstractmethod
    def program(self, task: int, record: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the reference that the sample is judged against, and the sample's program."""

    @abstractmethod
    def finish(self, folder: SampleFolder, draws: Mapping[float, Sequence[Draw]], settings: Settings) -> dict[str, Any]:
        """Write the report and return its content. Draws are given by temperature; all must have verdicts."""


def batches(benchmark: Benchmark, draws: Sequence[Draw], rows: int) -> list[list[Draw]]:
    """Split draws into batches for a model that decodes at most `rows` rows at a time."""
    found: list[list[Draw]] = []
    rows *= benchmark.batches_of_rows
    for _, members in groupby(draws, benchmark.batch_key):
        group = list(members)
        found += [group[first : first + rows] for first in range(0, len(group), rows)]
    return found
