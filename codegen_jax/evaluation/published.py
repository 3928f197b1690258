"""Published results of CodeGen's models, for comparison with ours.

The paper is Nijkamp et al., CodeGen: An Open Large Language Model for Code with Multi-Turn Program Synthesis, 2022. The
figures are from its tables for HumanEval and MBPP (200 samples per problem, top_p 0.95, the best of temperatures 0.2,
0.6 and 0.8 for each k) and MTPB (40 samples per case), and its prompt perplexities. Figures that no other public text
confirms have no sources here and are marked wherever they are printed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

CODEPARROT = "codeparrot's Space on Hugging Face"
CODET5 = "the README of CodeT5+"
REFACT = "Refact.ai's changelog of 15 December 2022"
TABLES = "the comparison tables of WizardCoder and Qwen"
PAPERS_WITH_CODE = "Papers with Code"
SUMMARY = "a public summary of the paper"


class Figure(NamedTuple):
    """A figure from the paper.

    Attributes:
        percent: the value in the paper; some sources round to one digit fewer.
        sources: the public texts that confirm it; empty for a figure that must be marked.
    """

    percent: float
    sources: tuple[str, ...] = ()


class Row(NamedTuple):
    """The paper's results for one model on a benchmark.

    Attributes:
        family: NL, Multi or Mono.
        size: the size in the name of the released weights; the paper says 2.7B, 6.1B and 16.1B.
        pass_at_k: figures by k.
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

PAPER_MBPP = (
    _row("NL", "350M", Figure(0.96), Figure(6.37), Figure(19.91)),
    _row("NL", "2B", Figure(5.34), Figure(24.63), Figure(48.95)),
    _row("NL", "6B", Figure(8.15), Figure(31.21), Figure(55.27)),
    _row("NL", "16B", Figure(10.92), Figure(38.43), Figure(62.76)),
    _row("Multi", "350M", Figure(7.46), Figure(24.18), Figure(46.37)),
    _row("Multi", "2B", Figure(18.06), Figure(45.80), Figure(65.34)),
    _row("Multi", "6B", Figure(18.35), Figure(47.27), Figure(67.92)),
    _row("Multi", "16B", Figure(20.94, (TABLES,)), Figure(51.61), Figure(70.02)),
    _row("Mono", "350M", Figure(14.59), Figure(41.49), Figure(63.00)),
    _row("Mono", "2B", Figure(27.31), Figure(59.19), Figure(74.24)),
    _row("Mono", "6B", Figure(32.48, (SUMMARY,)), Figure(64.20), Figure(76.81)),
    _row("Mono", "16B", Figure(35.28, (SUMMARY,)), Figure(67.32), Figure(80.09)),
)
PASS_AT_K = {"humaneval": PAPER, "mbpp": PAPER_MBPP}  # by benchmark

# pass rates on MTPB in percent, by mode and family, in the order of SIZES
PAPER_MTPB = {
    ("multi", "NL"): (Figure(0.23), Figure(15.31), Figure(19.37), Figure(30.33)),
    ("multi", "Multi"): (Figure(4.09), Figure(20.82), Figure(25.51), Figure(26.27)),
    ("multi", "Mono"): (Figure(16.98, (SUMMARY,)), Figure(38.72), Figure(43.52), Figure(47.34, (SUMMARY,))),
    ("single", "Mono"): (Figure(5.75, (SUMMARY,)), Figure(25.43), Figure(28.48), Figure(38.74, (SUMMARY,))),
}


class PaperPerplexity(NamedTuple):
    """A mean perplexity of prompts.

    Attributes:
        value: the value in the paper.
        sources: the public texts that confirm it; empty for a figure that must be marked.
    """

    value: float
    sources: tuple[str, ...] = ()


def _perplexities(*values: float, last: tuple[str, ...] = ()) -> tuple[PaperPerplexity, ...]:
    return (*map(PaperPerplexity, values[:-1]), PaperPerplexity(values[-1], last))


# CodeGen-Mono, in the order of SIZES: MTPB's prompts, and the prompts of the HumanEval problems that the model solved
# in at least one sample ("pass") or in none ("non-pass")
PAPER_PERPLEXITY = {
    "multi-turn": _perplexities(10.09, 8.90, 8.18, 8.05, last=(SUMMARY,)),
    "single-turn": _perplexities(13.92, 11.91, 10.58, 10.25, last=(SUMMARY,)),
    "pass": _perplexities(3.78, 3.66, 3.35, 3.12),
    "non-pass": _perplexities(5.18, 4.37, 3.88, 3.40),
}

# CodeGen-Mono by size, in percent: HumanEval, HumanEval+
EVALPLUS = {"2B": (24.4, 22.6), "6B": (29.3, 25.6), "16B": (32.9, 28.0)}
EVALPLUS_SOURCE = "the EvalPlus leaderboard"

SIZES = {(20, 1024): "350M", (32, 2560): "2B", (33, 4096): "6B", (34, 6144): "16B"}  # by n_layer and n_embd, in order
FAMILIES = {family.lower(): family for family in ("NL", "Multi", "Mono")}


def find_size(config: Mapping[str, Any]) -> str | None:
    """The size with the n_layer and n_embd of a model's config; None if no size matches."""
    return next((size for shape, size in SIZES.items() if shape == (config["n_layer"], config["n_embd"])), None)


def find_row(model: str, config: Mapping[str, Any]) -> Row | None:
    """The paper's HumanEval row for a model, found by config size and the last family in its name; None if not found.

    >>> find_row("runs/350m_mono", {"n_layer": 20, "n_embd": 1024}).pass_at_k[1].percent
    12.76
    """
    families = [FAMILIES[word] for word in re.split(r"[^a-z0-9]+", model.lower()) if word in FAMILIES]
    return next(
        (row for row in PAPER if families and (row.family, row.size) == (families[-1], find_size(config))), None
    )


def comparison_rows(benchmark: str, config: Mapping[str, Any]) -> list[Row]:
    """The rows to compare a model with: all rows of its size, or all Mono rows if no size matches."""
    size = find_size(config)
    rows = PASS_AT_K.get(benchmark, ())
    return [row for row in rows if row.size == size or (size is None and row.family == "Mono")]


def mtpb_comparison(mode: str, config: Mapping[str, Any]) -> dict[str, Figure]:
    """MTPB pass rates to compare a model with, by the published model's name, chosen as in `comparison_rows`."""
    size = find_size(config)
    return {
        f"CodeGen-{family} {row_size}": figure
        for (row_mode, family), figures in PAPER_MTPB.items()
        for row_size, figure in zip(SIZES.values(), figures, strict=True)
        if row_mode == mode and (row_size == size or (size is None and family == "Mono"))
    }


def perplexity_comparison(config: Mapping[str, Any], *measures: str) -> str:
    """The paper's prompt perplexities on one line, for the model's size, or for all sizes if none matches.

    >>> perplexity_comparison({"n_layer": 20, "n_embd": 1024}, "multi-turn")
    'the paper, CodeGen-Mono: 350M 10.09 (?); (?): confirmed by no public text other than the paper'
    """
    size, parts, are_confirmed = find_size(config), list[str](), True
    for measure in measures:
        figures = [
            (label, one) for label, one in zip(SIZES.values(), PAPER_PERPLEXITY[measure]) if size in (None, label)
        ]
        name = f"{measure} " if len(measures) > 1 else ""
        parts.append(
            name + ", ".join(f"{label} {one.value:.2f}{'' if one.sources else ' (?)'}" for label, one in figures)
        )
        are_confirmed &= all(one.sources for _, one in figures)
    if not are_confirmed:
        parts.append("(?): confirmed by no public text other than the paper")
    return f"the paper, CodeGen-Mono: {'; '.join(parts)}"


def format_percent(figure: Figure) -> str:
    return f"{figure.percent:.2f}%" if figure.sources else f"{figure.percent:.2f}% (?)"


def source_notes(figures: Iterable[Figure]) -> list[str]:
    """Sentences that name the sources confirming the figures, and explain the mark on unconfirmed ones."""
    figures = list(figures)
    sources = dict.fromkeys(source for figure in figures for source in figure.sources)
    confirmed = [f"Confirmed by {'; '.join(sources)}."] if sources else []
    unconfirmed = ["(?): confirmed by no public text other than the paper."]
    return confirmed + ([] if all(figure.sources for figure in figures) else unconfirmed)
