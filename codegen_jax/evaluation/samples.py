"""Read samples of a benchmark's problems: JSON lines in the format of human-eval and EvalPlus."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from codegen_jax.data.shards import describe_file, read_records
from codegen_jax.errors import listed, require
from codegen_jax.evaluation.problems import Problem
from codegen_jax.fields import did_you_mean
from codegen_jax.mistaken_paths import missing
from codegen_jax.storage import open_path

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_DEPTH = 100  # maximum nesting of a record, since records are written out again


class Sample(NamedTuple):
    """One line of a samples file.

    Attributes:
        task_id: its problem's task_id, as the benchmark spells it.
        program: prompt + completion, or the solution.
        record: the line's fields, unchanged.
    """

    task_id: str
    program: str
    record: dict[str, Any]


def read_samples(path: str, problems: Mapping[str, Problem]) -> list[Sample]:
    """Read the samples of a file, in its order. The file may be compressed (.gz or .zst).

    Raises:
        UserError: if the file can't be read or is empty, or a line is cut short, is not a JSON object, names an unknown
            problem, or has no program.
    """
    samples = read_lines(path, lambda record: _sample(record, problems))
    both = sum(sample.record.keys() >= {"solution", "completion"} for sample in samples)
    if both:
        log.warning(f"{path}: {both} lines have both a completion and a solution; the solution is run")
    return samples


def read_lines(path: str, parse: Callable[[dict[str, Any]], T | str]) -> list[T]:
    """Parse a file of JSON lines, in its order. The file may be compressed (.gz or .zst).

    Args:
        parse: converts a line's record, or returns a description of what is wrong with it.

    Raises:
        UserError: if the file can't be read or is empty, or a line is cut short, is not a JSON object, or is rejected
            by `parse`.
    """
    file = open_path(path)
    require(file.exists(), missing(path))
    require(not file.is_dir(), f"{path}: is a folder, not a file of samples")
    samples, mistakes = list[T](), list[str]()
    for line, content, record in read_records(path):
        found = record if isinstance(record, str) else parse(record)
        if not isinstance(found, str):
            samples.append(found)
        elif isinstance(record, str) and isinstance(content, bytes) and not content.endswith(b"\n"):
            mistakes.append(f"line {line}: the last line is incomplete ({found}); complete it or remove it")
        else:
            mistakes.append(f"line {line}: {found}")
    what = describe_file(path) if mistakes and not samples else ""
    require(not what, f"{path}: {what}")
    require(not mistakes, f"{path}: {listed(mistakes)}")
    require(bool(samples), f"{path}: contains no samples")
    return samples


def _sample(record: dict[str, Any], problems: Mapping[str, Problem]) -> Sample | str:
    """The sample on a line, or a description of what is wrong with the line."""
    if is_nested_too_deeply(record):
        return "JSON nested too deeply"
    if "task_id" not in record:
        return "no field task_id"
    task_id = record["task_id"]
    if type(task_id) not in (str, int):
        return f"task_id is {task_id!r:.40}, neither text nor a number"
    problem = problems.get(str(task_id).removeprefix("Mbpp/"))  # EvalPlus adds this prefix to MBPP's numbers
    if problem is None:
        return f"task_id {task_id!r:.40} is not in the benchmark{did_you_mean(str(task_id), problems)}"
    name = "solution" if "solution" in record else "completion"
    if name not in record:
        return "no field completion or solution"
    if not isinstance(record[name], str):
        return f"{name} is {record[name]!r:.40}, not text"
    prompt = problem.prompt if name == "completion" else ""
    return Sample(problem.task_id, prompt + record[name], record)


def is_nested_too_deeply(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Whether lists and objects are nested more than `levels` levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(is_nested_too_deeply(item, levels - 1) for item in inner)
