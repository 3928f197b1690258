"""MTPB samples as JSON lines: in our format, one text per turn, or from the authors' mtpb_sample.py, whole programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from codegen_jax.evaluation.mtpb.cases import Case, single_turn
from codegen_jax.evaluation.samples import Sample, is_nested_too_deeply, read_lines


def read_mtpb_samples(path: str, cases: Sequence[Case]) -> tuple[list[Sample], str]:
    """The samples in a file (plain, .gz or .zst), in file order, and their mode: multi, single or mixed.

    Our format is {"task_id": "1", "case": 0, "completions": [one text per turn]}; a single text answers all prompts
    joined into one turn. The authors' format is {"id", "input", "gold_output", "completions": the whole program,
    "prompts_completions": [...]}. Its case is found by comparing the parsed input, so formatting does not matter. If
    cases share an input (problem 10), lines with that input are assigned to them in turn.

    Raises:
        UserError: if the file can't be read or has no samples, or if a line is truncated, is not a JSON object, matches
            no case, or does not have one completion per turn.
    """
    by_key = {(case.problem, case.case): case for case in cases}
    count = Counter[str]()
    found = read_lines(path, lambda record: _sample(record, by_key, count))
    samples, modes = [sample for sample, _ in found], {mode for _, mode in found}
    return samples, modes.pop() if len(modes) == 1 else "mixed"


def _sample(
    record: dict[str, Any], cases: Mapping[tuple[str, int], Case], count: Counter[str]
) -> tuple[Sample, str] | str:
    """A line's sample and mode, or what is wrong with it; `count` counts lines in the authors' format by case."""
    if is_nested_too_deeply(record):
        return "JSON nested too deeply"
    if "gold_output" in record:
        return _authors_sample(record, cases, count)
    for name in ("task_id", "case", "completions"):
        if name not in record:
            return f"no field {name}"
    key = str(record["task_id"]), record["case"]
    case = cases.get(key) if type(record["case"]) is int else None
    if case is None:
        return f"task_id {record['task_id']!r:.40} with case {record['case']!r:.40} is not in the benchmark"
    texts = record["completions"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "completions must be a list of texts, one per turn"
    is_single = len(texts) == 1 < len(case.prompts)
    if not is_single and len(texts) != len(case.prompts):
        return f"{len(texts)} completions, but problem {case.problem} has {len(case.prompts)} turns"
    program = (single_turn(case) if is_single else case).history(texts)
    return Sample(case.task_id, program, record), "single" if is_single else "multi"


def _authors_sample(
    record: dict[str, Any], cases: Mapping[tuple[str, int], Case], count: Counter[str]
) -> tuple[Sample, str] | str:
    if not isinstance(record.get("completions"), str):
        return "completions must be the whole program, as text"
    if not isinstance(record.get("input"), dict):
        return "input must be an object"
    problem, given, gold = str(record.get("id")), record["input"], record["gold_output"]
    same = [case for case in cases.values() if case.problem == problem and case.given == given]
    if not same:
        return f"id {record.get('id')!r:.40} with input {given!r:.60} is not in the benchmark"
    ours = [case.task_id for case in same if case.expected == gold]
    if not ours:
        mistake = f"gold_output is {gold!r:.40}, but the problem's output is {same[0].expected!r:.40}"
        return f"{mistake}; set --problems to the file that the samples were drawn from"
    task_id = min(ours, key=count.__getitem__)
    count[task_id] += 1
    return Sample(task_id, record["completions"], record), "multi"
