"""Training steps that others have measured on TPUs, beside our estimates for them.

`scripts/bench_plan` compiles these steps, with libtpu 0.0.52, and prints the estimates. The programs that were measured
came from older compilers, and those of 2023 from code that can't be installed any more.
"""

from typing import NamedTuple


class Step(NamedTuple):
    """A step that was measured.

    Attributes:
        model: the model.
        topology: the slice.
        estimated: seconds per step, by our estimate.
        measured: seconds per step, as published.
        source: where, and how the seconds follow from what was published.
    """

    model: str
    topology: str
    estimated: float
    measured: float
    source: str

    @property
    def kind(self) -> str:
        return self.topology.split("-")[0]

    @property
    def ratio(self) -> float:
        """The measured seconds as a multiple of the estimate."""
        return self.measured / self.estimated


STEPS = (
    Step(
        "22B",
        "v4-128",
        estimated=13.75,
        measured=13.96,
        source="MaxText, configs/v4/README.md: 156 TFLOP/s per chip, as 6 FLOPs per parameter and token (April 2023)",
    ),
    Step(
        "52B",
        "v4-384",
        estimated=17.74,
        measured=20.88,
        source="MaxText, configs/v4/README.md: 154 TFLOP/s per chip, as 6 FLOPs per parameter and token (April 2023)",
    ),
    Step(
        "Llama2-70B",
        "v5p-1024",
        estimated=25.48,
        measured=23.68,
        source="MaxText, docs/reference/models/tiering.md: 692 tokens/s per chip with 4 rows of 4,096 tokens (2026)",
    ),
    Step(
        "Llama3.1-8B",
        "v6e-16",
        estimated=3.855,
        measured=3.393,
        source="tpu-recipes, training/trillium/Llama3.1-8B-MaxText: 3.393 s per step",
    ),
)


def span() -> tuple[float, float]:
    """The least and the greatest measured time, as multiples of the estimate."""
    ratios = [step.ratio for step in STEPS]
    return min(ratios), max(ratios)


def steps_on(kind: str) -> list[Step]:
    """The measured steps on a kind of TPU, such as v4."""
    return [step for step in STEPS if step.kind == kind]
