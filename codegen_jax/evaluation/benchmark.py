"""What a benchmark has of its own: how a sample is drawn, which program it makes, and what all of them come to."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.protocol import Draw, Protocol
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.inference.generate import Generator


class Benchmark(ABC):
    """A benchmark as `evaluate_model` needs it. Its tasks are what samples are drawn of, numbered from 0.

    Attributes:
        name: as reports have it.
        unit: what its tasks are called.
        fields: of a sample's record.
        own_limits: fields of `Protocol` that have no meaning here, since each task has its own.
    """

    name: str
    unit: str = "problems"
    fields: frozenset[str]
    own_limits: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def tasks(self) -> Sequence[Any]:
        """All of the benchmark; plain values, which its fingerprint is of."""

    @property
    def conditions(self) -> dict[str, Any]:
        """By name, what else of its own decides samples and verdicts."""
        return {}

    @abstractmethod
    def place(self, task: int) -> dict[str, Any]:
        """The fields of a record that say of which task it is."""

    @abstractmethod
    def together(self, draw: Draw) -> Hashable:
        """Samples for which this is equal may be drawn in one batch."""

    @abstractmethod
    def most_tokens(self, protocol: Protocol, task: int) -> int:
        """Of a sample."""

    @abstractmethod
    def draw(self, model: Generator, protocol: Protocol, batch: Sequence[Draw]) -> list[dict[str, Any]]:
        """The records of samples that may be drawn together.

        The text is a function of the model, seed, task, number and protocol, whatever else is drawn beside it. The last
        digits of the log-probability depend on the shape of the batch, as every sum of floats does; in bfloat16 these
        are coarse enough to turn a token now and then, and so the text.
        """

    @abstractmethod
    def program(self, task: int, record: Mapping[str, Any]) -> tuple[Any, str]:
        """A sample's program, and what it is judged by."""

    @abstractmethod
    def finish(self, folder: SampleFolder, draws: Mapping[float, Sequence[Draw]], settings: Settings) -> dict[str, Any]:
        """Write the report of samples, by temperature, that all have verdicts; gives its content."""


def batches(benchmark: Benchmark, draws: Sequence[Draw], rows: int) -> list[list[Draw]]:
    """Draws in batches of at most so many rows."""
    found: list[list[Draw]] = []
    for _, those in groupby(draws, benchmark.together):
        together = list(those)
        found += [together[first : first + rows] for first in range(0, len(together), rows)]
    return found
