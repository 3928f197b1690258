"""The perplexity of HumanEval's prompts, and of passed and failed samples separately.

The paper (Nijkamp et al. 2022, arXiv 2203.13474) compares the prompts of problems that a model solves with the
prompts of those that it does not: models more often solve the problems that they understand better. The perplexity of
a prompt of T tokens is

    exp(-(1/(T - 1)) sum_(t=2..T) log P(x_t | x_1, ..., x_(t-1)))

since the first token has no context to be predicted from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from codegen_jax.errors import require
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.prompt_perplexity import Mean, Segment, encode, perplexities
from codegen_jax.evaluation.samples import read_lines
from codegen_jax.fields import did_you_mean, in_words
from codegen_jax.inference.generator import Generator


class JudgedSample(NamedTuple):
    """A completion of a problem's prompt, and whether the program passed."""

    task_id: str
    completion: str
    passed: bool


@dataclass(frozen=True)
class SamplesPerplexity:
    """Perplexities of problems and samples, split by whether they passed.

    Attributes:
        pass_prompts: mean over the prompts of problems with a sample that passed.
        non_pass_prompts: mean over the prompts of problems whose samples all failed.
        without_samples: number of problems without samples, which are in neither mean.
        passed: mean over passed samples of the perplexity of the completion (all its tokens) given its prompt.
        failed: the same mean over failed samples.
        empty_passed: number of passed samples with an empty completion, which has no tokens; they are in neither mean.
        empty_failed: number of failed samples with an empty completion.
        cut: number of completions whose prompt was truncated from the left so that both fit in the context.
    """

    pass_prompts: Mean
    non_pass_prompts: Mean
    without_samples: int
    passed: Mean
    failed: Mean
    empty_passed: int
    empty_failed: int
    cut: int

    def __str__(self) -> str:
        lines = [
            f"prompts: {self.pass_prompts} for the {self.pass_prompts.count} problems with a passed sample, "
            f"{self.non_pass_prompts} for the {self.non_pass_prompts.count} without",
            f"completions given their prompt: {self.passed} for the {self.passed.count:,} passed samples, "
            f"{self.failed} for the {self.failed.count:,} failed ones",
        ]
        if self.without_samples:
            lines.append(f"{self.without_samples} problems have no samples and are in neither mean")
        if self.empty_passed or self.empty_failed:
            lines.append(
                f"{self.empty_passed + self.empty_failed:,} completions have no tokens and are in neither mean "
                f"({self.empty_passed:,} passed, {self.empty_failed:,} failed)"
            )
        if self.cut:
            lines.append(f"{self.cut:,} prompts were truncated from the left to fit together with their completion")
        return "\n".join(lines)


@dataclass(frozen=True)
class HumanevalPerplexity:
    """How well a model predicts HumanEval's prompts, and the completions that it or another model wrote.

    Attributes:
        prompts: the mean over problems.
        tokens: number of prompt tokens, without the first of each prompt.
        samples: the figures split by verdict; None if no samples were given.
        by_problem: the perplexity of each prompt, by task_id.
    """

    prompts: Mean
    tokens: int
    samples: SamplesPerplexity | None
    by_problem: dict[str, float]

    @property
    def perplexity(self) -> float:
        assert self.prompts.perplexity is not None  # there is at least one problem
        return self.prompts.perplexity

    def __str__(self) -> str:
        scope = f"mean over {self.prompts.count} problems, {self.tokens:,} tokens"
        prompts = f"HumanEval: prompt perplexity {self.prompts} ({scope})"
        return prompts if self.samples is None else f"{prompts}\n{self.samples}"


def humaneval_perplexity(
    model: Generator, problems: Sequence[Problem], samples: Sequence[JudgedSample] | None = None
) -> HumanevalPerplexity:
    """The perplexity of the problems' prompts and, given samples, the figures split by whether they passed.

    A completion is encoded separately, since the model wrote it after the prompt's last token; eos is not counted.

    Args:
        samples: judged samples; samples of other problems are ignored.

    Raises:
        UserError: for a prompt of fewer than two tokens, or a text that does not fit in the model's context.

    >>> humaneval_perplexity(codegen_jax.load("runs/350m_mono"), humaneval()).prompts
    Mean(count=164, perplexity=..., standard_error=...)
    """
    context, prompts = model.config.n_positions, dict[str, Segment]()
    for problem in problems:
        what = f"the prompt of {problem.task_id}"
        ids = encode(model.tokenizer, problem.model_prompt, what)
        require(len(ids) > 1, f"{what}: has {len(ids)} tokens, needs at least 2 to be scored; remove the problem")
        prompts[problem.task_id] = Segment(ids, 1).fit(context, what)
    chosen = [sample for sample in samples or () if sample.task_id in prompts]
    completions = dict[JudgedSample, Segment]()  # completions that have tokens; duplicates are scored once
    for sample in dict.fromkeys(chosen):
        what, before = f"a completion of {sample.task_id}", prompts[sample.task_id].ids
        ids = encode(model.tokenizer, sample.completion, what)
        if ids:
            completions[sample] = Segment(before + ids, len(before)).fit(context, what)
    values = perplexities(model, [[segment] for segment in (*prompts.values(), *completions.values())])
    by_problem = dict(zip(prompts, values))
    by_sample = dict(zip(completions, values[len(prompts) :]))
    cut = sum(one in completions and completions[one].start < len(prompts[one.task_id].ids) for one in chosen)
    return HumanevalPerplexity(
        prompts=Mean.of(by_problem.values()),
        tokens=sum(segment.tokens for segment in prompts.values()),
        samples=None if samples is None else _by_verdict(by_problem, by_sample, chosen, cut),
        by_problem=by_problem,
    )


def _by_verdict(
    by_problem: Mapping[str, float], by_sample: Mapping[JudgedSample, float], samples: Sequence[JudgedSample], cut: int
) -> SamplesPerplexity:
    attempted = {sample.task_id for sample in samples}
    solved = {sample.task_id for sample in samples if sample.passed}

    def of_prompts(task_ids: set[str]) -> Mean:
        return Mean.of(value for task_id, value in by_problem.items() if task_id in task_ids)

    def of_samples(passed: bool) -> Mean:
        return Mean.of(by_sample[one] for one in samples if one.passed == passed and one in by_sample)

    def empty(passed: bool) -> int:
        return sum(one.passed == passed and one not in by_sample for one in samples)

    return SamplesPerplexity(
        pass_prompts=of_prompts(solved),
        non_pass_prompts=of_prompts(attempted - solved),
        without_samples=len(by_problem.keys() - attempted),
        passed=of_samples(True),
        failed=of_samples(False),
        empty_passed=empty(True),
        empty_failed=empty(False),
        cut=cut,
    )


def read_judged_samples(path: str, problems: Sequence[Problem]) -> list[JudgedSample]:
    """Read a results file written by `evaluate ... humaneval`: task_id, completion, passed.

    Raises:
        UserError: if the file can't be read or is empty, or a line lacks a field, names an unknown problem, or has a
            solution (a whole program), in which the completion can't be separated from the prompt.
    """
    known = [problem.task_id for problem in problems]

    def parse(record: Mapping[str, Any]) -> JudgedSample | str:
        if "solution" in record:
            return "has a solution (a whole program); perplexity needs a completion of the prompt"
        for name, kind in (("task_id", str), ("completion", str), ("passed", bool)):
            if name not in record:
                return f"no field {name}; give a results file written by codegen-jax evaluate"
            if type(record[name]) is not kind:
                return f"{name} is {record[name]!r:.40}, not {in_words(kind)}"
        task_id = record["task_id"]
        if task_id not in known:
            return f"task_id {task_id!r:.40} is not in the benchmark{did_you_mean(task_id, known)}"
        return JudgedSample(task_id, record["completion"], record["passed"])

    return read_lines(path, parse)
