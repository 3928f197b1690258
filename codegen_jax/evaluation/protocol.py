"""How samples of a benchmark's problems are drawn: the paper's protocol and EvalPlus' greedy protocol."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from codegen_jax.errors import UserError, require
from codegen_jax.fields import check_fields
from codegen_jax.inference.request import Options

Truncate = Literal["codegen", "evalplus", "none"]

# EvalPlus' stop strings for base models on HumanEval, in addition to eos (evalplus/provider/utility.py)
EVALPLUS_STOPS = ("\nif __name__", "\ndef main(", "\nprint(", "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")


class Draw(NamedTuple):
    """One sample to draw: its temperature, its problem's index in the benchmark, and its index within the problem."""

    temperature: float
    problem: int
    sample: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The paper's protocol (arXiv 2203.13474, section 3.2): for each k, the best of three temperatures counts.

    Attributes:
        num_samples: samples per problem and temperature.
        temperatures: sampling temperatures; 0 is greedy, so it allows one sample only.
        top_p: see `Options`.
        max_new_tokens: not given in the paper; HumanEval's longest solution has 297 tokens (Multi, Mono tokenizer).
        truncate: codegen: where the authors' sample.py ends a completion; evalplus: before the first of EvalPlus'
            stop strings; none: only at eos.
        stop_strings: additional stop strings of a benchmark's prompt.
        seed: the seed from which each sample's seed is derived.

    Raises:
        UserError: for an invalid value; the message begins with the field's name.
    """

    num_samples: int = 200
    temperatures: Sequence[float] = (0.2, 0.6, 0.8)
    top_p: float = 0.95
    max_new_tokens: int = 512
    truncate: Truncate = "codegen"
    stop_strings: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.temperatures), "temperatures: must not be empty")
        require(
            len(set(map(file_label, self.temperatures))) == len(self.temperatures),
            "temperatures: must be distinct (to six digits)",
        )
        for temperature in self.temperatures:
            try:
                Options(num_samples=self.num_samples, **self.options(temperature))
            except UserError as error:  # names temperature, but the field here is temperatures
                raise UserError(re.sub("^temperature:", "temperatures:", str(error))) from error
        require(
            self.num_samples == 1 or 0 not in self.temperatures,
            f"temperatures: at 0, all {self.num_samples} samples of a problem are the same; use --greedy to draw one",
        )

    def options(self, temperature: float) -> dict[str, Any]:
        """Keyword arguments of `Generator.complete`."""
        return {
            "temperature": float(temperature),
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "truncate": "codegen" if self.truncate == "codegen" else None,
            "stop_strings": (*self.stop_strings, *(EVALPLUS_STOPS if self.truncate == "evalplus" else ())),
            "logprobs": 0,
        }

    def seed_of(self, task: str, sample: int) -> int:
        """A sample's seed: distinct within a task, and a function of `seed`, task and sample number only."""
        digest = hashlib.sha256(f"{self.seed} {task}".encode()).digest()
        return (int.from_bytes(digest[:4], "big") + sample) % 2**32

    def draws(self, problems: Sequence[int]) -> list[Draw]:
        """All samples of these problems, ordered by temperature, problem and sample."""
        return [Draw(t, number, n) for t in self.temperatures for number in problems for n in range(self.num_samples)]


def file_label(temperature: float) -> str:
    """The temperature as used in file names: "T0.2"."""
    return f"T{temperature:g}"
