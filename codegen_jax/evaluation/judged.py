"""Read the results in an evaluation's folder: each sample with its outcome."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codegen_jax.data.shards import read_records
from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.verdicts import OUTCOMES
from codegen_jax.fields import did_you_mean
from codegen_jax.mistaken_paths import contains, missing

RESULTS = "results.jsonl"  # results of samples given as a file
RESULTS_AT = re.compile(r"results_T(\d+(?:\.\d+)?(?:e[+-]\d+)?)\.jsonl")  # results of a model at one temperature


class Judged(NamedTuple):
    """A sample and its outcome.

    Attributes:
        task_id: the problem's task_id.
        sample: index among the samples of its problem (MTPB: of its case), starting at 0.
        completion: the text after the prompt (MTPB: all turns, joined), or the whole program if the sample was given as
            one.
        outcome: "passed", or how else it ended (evaluation/verdicts.py).
        error: the last line of the error; "" if the sample passed.
        case: the MTPB case; None for other benchmarks.
    """

    task_id: str
    sample: int
    completion: str
    outcome: str
    error: str
    case: int | None = None


def format_temperature(temperature: float | None) -> str:
    """A temperature as written in reports; "-" for given samples, since their temperature is unknown."""
    return "-" if temperature is None else f"{temperature:g}"


def read_results(folder: str) -> dict[float | None, list[Judged]]:
    """Read the results in an evaluation's output folder, by increasing temperature and in file order.

    The temperature of `evaluate SAMPLES.jsonl` samples is unknown: they are stored under None and numbered here.

    Raises:
        UserError: if the folder does not exist, contains no results, or a line is damaged.

    >>> read_results("runs/x/humaneval")[0.2][0]
    Judged(task_id='HumanEval/0', sample=0, completion='    for i, ...', outcome='passed', error='')
    """
    path = Path(folder)
    if not path.exists():
        raise UserError(missing(folder))
    require(path.is_dir(), f"{folder}: is a file; give the output folder of codegen-jax evaluate")
    names = sorted(file.name for file in path.iterdir())
    found = {float(match[1]): match[0] for match in map(RESULTS_AT.fullmatch, names) if match}
    if not found and RESULTS not in names:
        raise UserError(
            f"{folder}: no evaluation results; it {contains(names)}; give the output folder of a finished codegen-jax "
            "evaluate"
        )
    if not found:
        return {None: _read(path / RESULTS, are_given=True)}
    return {temperature: _read(path / found[temperature], are_given=False) for temperature in sorted(found)}


def _read(path: Path, are_given: bool) -> list[Judged]:
    judged, count = list[Judged](), Counter[str]()
    for line, _, record in read_records(str(path)):
        if are_given and isinstance(record, dict):
            record |= {"sample": 0}  # a given sample may have a field of that name with another meaning
        one = record if isinstance(record, str) else _judged(record)
        if isinstance(one, str):
            raise UserError(
                f"{path}: line {line} is damaged ({one}); run the same evaluate command again to rewrite the file"
            )
        judged.append(one._replace(sample=count[one.task_id]) if are_given else one)
        count[one.task_id] += 1
    require(bool(judged), f"{path}: contains no results; run the same evaluate command again to rewrite the file")
    return judged


def _judged(record: Mapping[str, Any]) -> Judged | str:
    """The sample on a line, or a description of what is wrong with the line."""
    task_id, sample = record.get("task_id", record.get("id")), record.get("sample")  # the MTPB authors use id
    text = record.get("solution", record.get("completion"))  # if a given sample has both, the solution was run
    if "completions" in record:  # MTPB's turns
        turns = record["completions"]
        text = "\n\n".join(map(str, turns)) if isinstance(turns, list) else turns
    outcome, error = record.get("outcome"), record.get("error")
    if not isinstance(task_id, str | int):
        return "no task_id"
    if not isinstance(text, str):
        return "no completion"
    if outcome not in OUTCOMES or not isinstance(error, str):
        return "no valid outcome and error"
    if type(sample) is not int:
        return f"sample is {sample!r:.40}, not a number"
    spelled = str(task_id).removeprefix("Mbpp/")  # given samples may spell a problem 601, "601" or "Mbpp/601"
    return Judged(spelled, sample, text, outcome, error, record.get("case") if "completions" in record else None)


def find(
    results: Mapping[float | None, Sequence[Judged]], task_id: str, temperature: float | None, sample: int | None
) -> dict[float | None, list[Judged]]:
    """The samples of a problem by temperature; only those with this temperature or number, if not None.

    Raises:
        UserError: if the problem, temperature or sample is not found; the message names existing ones.
    """
    if temperature is not None and temperature not in results:
        known_names = ", ".join(format_temperature(known) for known in results if known is not None)
        hint = (
            f"the results have temperatures {known_names}"
            if known_names
            else "given samples have no temperature; omit it"
        )
        raise UserError(f"temperature: {temperature:g} not found; {hint}")
    chosen = results if temperature is None else {temperature: results[temperature]}
    found = {at: [one for one in judged if one.task_id == task_id] for at, judged in chosen.items()}
    found = {at: judged for at, judged in found.items() if judged}
    if not found:
        names = dict.fromkeys(one.task_id for judged in chosen.values() for one in judged)
        raise UserError(
            f"{task_id}: not found; the results have problems such as {next(iter(names))} ({len(names)} in total)"
            f"{did_you_mean(task_id, names)}"
        )
    if sample is None:
        return found
    numbers = sorted({one.sample for judged in found.values() for one in judged})
    require(sample in numbers, f"sample: {sample} not found; {task_id} has samples {numbers[0]} to {numbers[-1]}")
    found = {at: [one for one in judged if one.sample == sample] for at, judged in found.items()}
    return {at: judged for at, judged in found.items() if judged}
