"""HumanEval and MBPP: each sample completes a prompt once, and pass@k is computed from how many samples pass."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import Any

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import require
from codegen_jax.evaluation.benchmark import Benchmark
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.judged import Judged
from codegen_jax.evaluation.model_report import make_report
from codegen_jax.evaluation.model_report_page import PICTURE, to_markdown
from codegen_jax.evaluation.pass_at_k_picture import save_picture
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.protocol import Draw, Protocol, file_label
from codegen_jax.evaluation.published import find_row
from codegen_jax.evaluation.results import REPORT, REPORT_MARKDOWN
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.inference.generator import Generator
from codegen_jax.strict_json import dumps


@dataclass(frozen=True)
class Completions(Benchmark):
    """A benchmark whose tasks are problems with one prompt each.

    Attributes:
        problems: all problems of the benchmark, with their `model_prompt`.
        ks: values of k for pass@k.
        export: also write the programs in the format that the BigCode harness reads.
    """

    name: str
    problems: Sequence[Problem]
    ks: Sequence[int]
    export: bool = False

    batches_of_rows = 4  # the rows of samples that have ended are taken by others
    fields = frozenset({"task_id", "completion", "sample", "temperature", "tokens", "finish_reason", "logprob"})

    @property
    def tasks(self) -> Sequence[Any]:
        return [astuple(problem) for problem in self.problems]

    def task_fields(self, task: int) -> dict[str, Any]:
        return {"task_id": self.problems[task].task_id}

    def batch_key(self, draw: Draw) -> Any:
        return draw.temperature

    def max_tokens(self, protocol: Protocol, task: int) -> int:
        return protocol.max_new_tokens

    def draw(self, model: Generator, protocol: Protocol, batch: Sequence[Draw]) -> list[dict[str, Any]]:
        temperature = batch[0].temperature
        completions = model.complete(
            [self.problems[draw.problem].model_prompt for draw in batch],
            seed=[protocol.seed_of(self.problems[draw.problem].task_id, draw.sample) for draw in batch],
            **protocol.options(temperature),
        )
        return [
            {
                "task_id": self.problems[draw.problem].task_id,
                "completion": completion.completion,
                "sample": draw.sample,
                "temperature": temperature,
                "tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "logprob": round(sum(completion.logprobs or []), 3),
            }
            for draw, completion in zip(batch, completions, strict=True)
        ]

    def program(self, task: int, record: Mapping[str, Any]) -> tuple[Any, str]:
        return self.problems[task], self.problems[task].prompt + record["completion"]

    def finish(self, folder: SampleFolder, draws: Mapping[float, Sequence[Draw]], settings: Settings) -> dict[str, Any]:
        results = {
            temperature: [
                Judged(
                    self.problems[draw.problem].task_id,
                    draw.sample,
                    folder.samples[draw]["completion"],
                    folder.verdicts[draw].outcome,
                    folder.verdicts[draw].error,
                )
                for draw in found
            ]
            for temperature, found in draws.items()
        }
        if self.export:
            for temperature, found in draws.items():
                programs = [
                    [self.program(number, folder.samples[draw])[1] for draw in of_problem]
                    for number, of_problem in groupby(found, lambda draw: draw.problem)
                ]
                folder.write_file(folder.folder / f"generations_{file_label(temperature)}.json", dumps(programs) + "\n")
        report = make_report(folder.identity, self.problems, results, self.ks, settings.sandbox)
        folder.write_file(folder.folder / REPORT, dumps(report, indent=2) + "\n")
        folder.write_file(folder.folder / REPORT_MARKDOWN, to_markdown(report, self.problems, results))
        is_whole = self.name == "humaneval" and report["attempted"] == report["problems"]
        paper = find_row(report["model"], report["settings"]["config"]) if is_whole else None
        with folder.writing():
            save_picture(results, f"{report['model']} on {self.name}", paper, folder.folder / PICTURE)
        return report


def require_room(tokenizer: Tokenizer, context: int, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Raise `UserError` unless every prompt is non-empty and fits in the model's context with the new tokens."""
    for problem in problems:
        require(bool(problem.model_prompt), f"{problem.task_id}: the prompt is empty; add one, or remove the problem")
    lengths = {problem.task_id: len(tokenizer.encode(problem.model_prompt)) for problem in problems}
    task_id = max(lengths, key=lengths.__getitem__)  # the longest, so the reported limit holds for every problem
    tokens = lengths[task_id]
    require(
        tokens < context,
        f"{task_id}: the prompt has {tokens} tokens, too many for the model's context of {context}; use a model with "
        "a longer context, or remove the problem",
    )
    require(
        tokens + max_new_tokens <= context,
        f"max_new_tokens: the prompt of {task_id} has {tokens} tokens, and {max_new_tokens} new tokens exceed the "
        f"model's context of {context}; use at most {context - tokens}",
    )
