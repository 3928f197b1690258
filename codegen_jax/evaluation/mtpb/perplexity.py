"""The perplexity of MTPB's prompts, multi-turn and single-turn: how well a model understands what it is asked for.

The paper (Nijkamp et al. 2022, arXiv 2203.13474) takes for the prompts p_1 ... p_n of a problem with one of its inputs,
and the model's own subprograms s_1 ... s_n,

    multi-turn   exp(-(1/m) sum_i log P(p_i | prefix, p_1, s_1, ..., p_(i-1), s_(i-1)))
    single-turn  exp(-(1/k) log P(c | prefix))

where c is all prompts joined, and m and k are the numbers of their tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from codegen_jax.errors import listed, require
from codegen_jax.evaluation.benchmark import batches
from codegen_jax.evaluation.mtpb.cases import Case, single_turn
from codegen_jax.evaluation.mtpb.samples import read_mtpb_samples
from codegen_jax.evaluation.mtpb.turns import Turns
from codegen_jax.evaluation.prompt_perplexity import Mean, perplexities, piece_after
from codegen_jax.evaluation.protocol import Protocol
from codegen_jax.inference.generate import Generator


@dataclass(frozen=True)
class MtpbPerplexity:
    """How well a model predicts the prompts of MTPB.

    Attributes:
        mode: multi or single.
        subprograms: greedy (drawn by the model), given (in samples), or none (single-turn).
        cases: the mean over them.
        problems: how many; `over_problems` is the mean over them of the mean over a problem's cases.
        over_problems: equals that over cases where all problems have equally many.
        samples: histories that were measured; a case's figure is the mean over its own.
        tokens: of the prompts, once for each sample.
        cut: prompts whose history was cut from the left.
        by_case: the perplexity of each, by PROBLEM/NUMBER.
    """

    mode: str
    subprograms: str
    cases: Mean
    problems: int
    over_problems: float
    samples: int
    tokens: int
    cut: int
    by_case: dict[str, float]

    @property
    def perplexity(self) -> float:
        assert self.cases.perplexity is not None  # there is one case at least
        return self.cases.perplexity

    def __str__(self) -> str:
        history = {
            "greedy": ", between subprograms that the model drew greedily",
            "given": f", between the subprograms of {self.samples:,} samples",
        }.get(self.subprograms, "")
        lines = [
            f"MTPB, {self.mode}-turn: perplexity of the prompts {self.perplexity:.3f}, the mean over "
            f"{self.cases.count:,} cases of {self.problems} problems ({self.tokens:,} tokens{history})"
        ]
        if abs(self.over_problems - self.perplexity) > 5e-4:
            lines.append(f"mean over problems, which have not equally many cases: {self.over_problems:.3f}")
        if self.cut:
            lines.append(f"{self.cut:,} prompts have a history longer than the context; it was cut from the left")
        return "\n".join(lines)


def multi_turn(
    model: Generator, cases: Sequence[Case], samples: Mapping[str, Sequence[Sequence[str]]] | None = None
) -> MtpbPerplexity:
    """The multi-turn perplexity, of the prompts alone: prefix and subprograms are context.

    Args:
        samples: subprograms by `Case.task_id`, of each sample one per turn, of which the last is not looked at; None:
            one sample of each case is drawn greedily.

    Raises:
        UserError: for a case without samples, or a prompt that does not fit into the model's context.

    >>> multi_turn(codegen_jax.load("runs/350m_mono"), read_cases("mtpb.jsonl")).perplexity
    """
    if samples is None:
        drawn = draw_subprograms(model, cases)
        return _measure(model, cases, {case.task_id: [one] for case, one in zip(cases, drawn)}, "multi", "greedy")
    lacking = [f"case {case.task_id}" for case in cases if not samples.get(case.task_id)]
    require(not lacking, f"samples: there is none of {listed(lacking)}; give one of each, or take fewer by --limit")
    return _measure(model, cases, samples, "multi", "given")


def single_turn_perplexity(model: Generator, cases: Sequence[Case]) -> MtpbPerplexity:
    """The single-turn perplexity: all prompts of a case joined, behind the prefix.

    Raises:
        UserError: for prompts that do not fit into the model's context.
    """
    joined = [single_turn(case) for case in cases]
    return _measure(model, joined, {case.task_id: [[]] for case in joined}, "single", "none")


def _measure(
    model: Generator,
    cases: Sequence[Case],
    samples: Mapping[str, Sequence[Sequence[str]]],
    mode: str,
    subprograms: str,
) -> MtpbPerplexity:
    context, cut = model.config.n_positions, 0
    groups, owners = [], list[Case]()
    for case in cases:
        for completions in samples[case.task_id]:
            pieces = []
            for turn, prompt in enumerate(case.prompts):
                history = case.history(completions[:turn])
                what = f"prompt {turn + 1} of case {case.task_id}"
                whole = piece_after(model.tokenizer, history, prompt, what)
                pieces.append(whole.fitted(context, what))
                cut += pieces[-1].ids != whole.ids
            groups.append(pieces)
            owners.append(case)
    by_case = dict[str, list[float]]()
    for case, value in zip(owners, perplexities(model, groups)):
        by_case.setdefault(case.task_id, []).append(value)
    means = {task_id: float(np.mean(values)) for task_id, values in by_case.items()}
    by_problem = dict[str, list[float]]()
    for case in cases:
        by_problem.setdefault(case.problem, []).append(means[case.task_id])
    return MtpbPerplexity(
        mode=mode,
        subprograms=subprograms,
        cases=Mean.of(means.values()),
        problems=len(by_problem),
        over_problems=float(np.mean([np.mean(values) for values in by_problem.values()])),
        samples=len(groups),
        tokens=sum(piece.tokens for pieces in groups for piece in pieces),
        cut=cut,
        by_case=means,
    )


def draw_subprograms(model: Generator, cases: Sequence[Case]) -> list[list[str]]:
    """A model's own subprograms of each case, greedy, as `evaluate MODEL mtpb --greedy` draws them."""
    turns, protocol = Turns(cases, "multi", "official"), Protocol(num_samples=1, temperatures=(0.0,))
    drawn = list[list[str]]()
    for batch in tqdm(batches(turns, protocol.draws(range(len(cases))), model.max_rows), unit="batch", disable=None):
        drawn += [record["completions"] for record in turns.draw(model, protocol, batch)]
    return drawn


def read_subprograms(path: str, cases: Sequence[Case]) -> dict[str, list[list[str]]]:
    """The subprograms of a file of samples such as `evaluate MODEL mtpb` writes, by `Case.task_id`.

    Raises:
        UserError: as `read_mtpb_samples`; and for samples of a single turn, or of the authors' script, which are whole
            programs without a mark where a subprogram ends.
    """
    samples, mode = read_mtpb_samples(path, cases)
    are_turns = mode == "multi" and all(isinstance(sample.record["completions"], list) for sample in samples)
    require(are_turns, f"{path}: samples without a text per turn; give those of evaluate MODEL mtpb --mode multi")
    found = dict[str, list[list[str]]]()
    for sample in samples:
        found.setdefault(sample.task_id, []).append(sample.record["completions"])
    return found
