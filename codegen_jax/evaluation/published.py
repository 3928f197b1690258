"""What others have measured on HumanEval with CodeGen's models, to stand beside ours.

The paper: Nijkamp et al., CodeGen: An Open Large Language Model for Code with Multi-Turn Program Synthesis, 2022, its
table of HumanEval: 200 samples per problem, top_p 0.95, for each k the best of the temperatures 0.2, 0.6 and 0.8.
Figures that no other public text confirms have no sources here, and a mark wherever they are printed.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

CODEPARROT = "codeparrot's Space on Hugging Face"
CODET5 = "the README of CodeT5+"
REFACT = "Refact.ai's changelog of 15 December 2022"
TABLES = "the comparison tables of WizardCoder and Qwen"
PAPERS_WITH_CODE = "Papers with Code"


class Figure(NamedTuple):
    """A pass@k.

    Attributes:
        percent: as the paper has it; some sources give one digit less.
        sources: the public texts that confirm it; none for a figure that is to be marked.
    """

    percent: float
    sources: tuple[str, ...] = ()


class Row(NamedTuple):
    """A model of the paper.

    Attributes:
        family: NL, Multi or Mono.
        size: as its released weights are called; the paper says 2.7B, 6.1B and 16.1B.
        pass_at_k: by k.
    """

    family: str
    size: str
    pass_at_k: dict[int, Figure]

    @property
    def name(self) -> str:
        return f"CodeGen-{self.family} {self.size}"


def _row(family: str, size: str, at_1: Figure, at_10: Figure, at_100: Figure) -> Row:
    return Row(family, size, {1: at_1, 10: at_10, 100: at_100})


def _mono(size: str, at_1: float, at_10: float, at_100: float, *sources: str) -> Row:
    return _row("Mono", size, *(Figure(percent, sources) for percent in (at_1, at_10, at_100)))


PAPER = (
    _row("NL", "350M", Figure(2.12), Figure(4.10), Figure(7.38)),
    _row("NL", "2B", Figure(6.70), Figure(14.15), Figure(22.84)),
    _row("NL", "6B", Figure(10.43), Figure(18.36), Figure(29.85)),
    _row("NL", "16B", Figure(14.24, (PAPERS_WITH_CODE,)), Figure(23.46), Figure(38.33)),
    _row("Multi", "350M", Figure(6.67), Figure(10.61), Figure(16.84)),
    _row("Multi", "2B", Figure(14.51, (REFACT,)), Figure(24.67), Figure(38.56, (REFACT,))),
    _row("Multi", "6B", Figure(18.16, (REFACT,)), Figure(28.71), Figure(44.85, (REFACT,))),
    _row("Multi", "16B", Figure(18.32, (TABLES,)), Figure(32.07), Figure(50.80)),
    _mono("350M", 12.76, 23.11, 35.19, CODEPARROT),
    _mono("2B", 23.70, 36.64, 57.01, CODEPARROT),
    _mono("6B", 26.13, 42.29, 65.82, CODEPARROT),
    _mono("16B", 29.28, 49.86, 75.00, CODEPARROT, CODET5),
)

# of CodeGen-Mono by size, in percent: HumanEval, HumanEval+
EVALPLUS = {"2B": (24.4, 22.6), "6B": (29.3, 25.6), "16B": (32.9, 28.0)}
EVALPLUS_SOURCE = "the leaderboard of EvalPlus"

SIZES = {(20, 1024): "350M", (32, 2560): "2B", (33, 4096): "6B", (34, 6144): "16B"}  # by n_layer and n_embd
FAMILIES = {family.lower(): family for family in ("NL", "Multi", "Mono")}


def size_of(config: Mapping[str, Any]) -> str | None:
    """The size whose layers and width a model's config has (n_layer, n_embd)."""
    return next((size for shape, size in SIZES.items() if shape == (config["n_layer"], config["n_embd"])), None)


def row_of(model: str, config: Mapping[str, Any]) -> Row | None:
    """The paper's row of a model: by its config's size and its name's last word that is a family; None without these.

    >>> row_of("runs/350m_mono", {"n_layer": 20, "n_embd": 1024}).pass_at_k[1].percent
    12.76
    """
    families = [FAMILIES[word] for word in re.split(r"[^a-z0-9]+", model.lower()) if word in FAMILIES]
    return next((row for row in PAPER if families and (row.family, row.size) == (families[-1], size_of(config))), None)


def rows_beside(config: Mapping[str, Any]) -> list[Row]:
    """The rows to compare a model with: all of its size, or of Mono where its size is none of the paper's."""
    size = size_of(config)
    return [row for row in PAPER if row.size == size or (size is None and row.family == "Mono")]
