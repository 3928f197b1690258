"""MTPB with a model: each turn's prompt is completed given the earlier turns, and the last printed value counts."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from codegen_jax.errors import require
from codegen_jax.evaluation.benchmark import Benchmark
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.judged import format_temperature
from codegen_jax.evaluation.mtpb.cases import Case
from codegen_jax.evaluation.mtpb.printed import Checker, Printed
from codegen_jax.evaluation.mtpb.report import Execution, make_report
from codegen_jax.evaluation.mtpb.report_page import to_markdown
from codegen_jax.evaluation.protocol import Draw, Protocol, file_label
from codegen_jax.evaluation.results import REPORT, REPORT_MARKDOWN
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.inference.generator import Generator
from codegen_jax.strict_json import dumps


@dataclass(frozen=True)
class Turns(Benchmark):
    """MTPB as a benchmark: each case of a problem is a task.

    Attributes:
        cases: all cases; in single mode, each has one turn.
        mode: multi or single.
        checker: official or repaired; compares printed with expected values.
    """

    cases: Sequence[Case]
    mode: str
    checker: Checker

    name = "mtpb"
    unit = "cases"
    fields = frozenset(
        {"task_id", "case", "completions", "sample", "temperature", "tokens", "finish_reasons", "cut_tokens", "logprob"}
    )
    unused_fields = frozenset({"max_new_tokens", "stop_strings"})

    @property
    def conditions(self) -> dict[str, Any]:
        return {"mode": self.mode, "checker": self.checker}

    @property
    def tasks(self) -> Sequence[Any]:
        return [astuple(case) for case in self.cases]

    def task_fields(self, task: int) -> dict[str, Any]:
        return {"task_id": self.cases[task].problem, "case": self.cases[task].case}

    def batch_key(self, draw: Draw) -> Any:
        case = self.cases[draw.problem]
        return draw.temperature, len(case.prompts), case.max_new_tokens

    def max_tokens(self, protocol: Protocol, task: int) -> int:
        return self.cases[task].max_new_tokens * len(self.cases[task].prompts)

    def draw(self, model: Generator, protocol: Protocol, batch: Sequence[Draw]) -> list[dict[str, Any]]:
        cases, temperature = [self.cases[draw.problem] for draw in batch], batch[0].temperature
        records = [
            {
                "task_id": case.problem,
                "case": case.case,
                "completions": [],
                "sample": draw.sample,
                "temperature": temperature,
                "tokens": 0,
                "finish_reasons": [],
                "cut_tokens": 0,
                "logprob": 0.0,
            }
            for draw, case in zip(batch, cases)
        ]
        options = protocol.options(temperature) | {"max_new_tokens": cases[0].max_new_tokens}
        room, before = model.config.n_positions - cases[0].max_new_tokens, None
        for turn in range(len(cases[0].prompts)):
            prompts = []
            for case, record in zip(cases, records):
                ids = model.tokenizer.encode(case.model_prompt(record["completions"]))
                prompts.append(ids[-room:])
                record["cut_tokens"] += len(ids) - len(prompts[-1])
            seeds = [protocol.seed_of(f"{case.task_id} turn {turn}", draw.sample) for case, draw in zip(cases, batch)]
            completions, before = model.complete_turn(prompts, before, seed=seeds, **options)
            for record, completion in zip(records, completions, strict=True):
                record["completions"].append(completion.completion)
                record["tokens"] += len(completion.token_ids)
                record["finish_reasons"].append(completion.finish_reason)
                record["logprob"] = round(record["logprob"] + sum(completion.logprobs or []), 3)
        return records

    def program(self, task: int, record: Mapping[str, Any]) -> tuple[Printed, str]:
        case = self.cases[task]
        return Printed(case, self.checker), case.history(record["completions"])

    def finish(self, folder: SampleFolder, draws: Mapping[float, Sequence[Draw]], settings: Settings) -> dict[str, Any]:
        """Write report_T*.json per temperature; report.json is the one for the best temperature, as in the paper."""
        executions = {
            temperature: [self._execution(folder, draw) for draw in found] for temperature, found in draws.items()
        }
        run = {name: folder.identity[name] for name in ("model", "revision", "seed", "top_p", "truncate")}
        reports = {
            temperature: {"temperature": temperature, **make_report(found, self.cases, self.mode, self.checker), **run}
            for temperature, found in executions.items()
        }
        for temperature, report in reports.items():
            folder.write_file(folder.folder / f"report_{file_label(temperature)}.json", dumps(report, indent=2) + "\n")
        rates = {format_temperature(temperature): report["pass_rate"] for temperature, report in reports.items()}
        best = max(reports.values(), key=lambda report: report["pass_rate"]) | {"pass_rates": rates}
        folder.write_file(folder.folder / REPORT, dumps(best, indent=2) + "\n")
        head = {name: folder.identity[name] for name in ("model", "config", "timeout", "unsafe")}
        page = to_markdown(
            head | {"sandbox": settings.sandbox},
            {format_temperature(temperature): report for temperature, report in reports.items()},
            {format_temperature(temperature): found for temperature, found in executions.items()},
        )
        folder.write_file(folder.folder / REPORT_MARKDOWN, page)
        return best

    def _execution(self, folder: SampleFolder, draw: Draw) -> Execution:
        record, verdict = folder.samples[draw], folder.verdicts[draw]
        program = self.program(draw.problem, record)[1]
        case = self.cases[draw.problem]
        return Execution(case, draw.sample, program, verdict.outcome, verdict.error, record["cut_tokens"])


def require_room(context: int, cases: Sequence[Case]) -> None:
    """Raise `UserError` if the new tokens of a turn leave no room for a prompt in the model's context."""
    longest = max(cases, key=lambda case: case.max_new_tokens)
    require(
        longest.max_new_tokens < context,
        f"problem {longest.problem}: a turn of {longest.max_new_tokens} tokens leaves no room for a prompt in the "
        f"model's context of {context}; use a model with a longer context, or fewer problems (--limit)",
    )
