"""MTPB, the paper's benchmark: a problem's prompts are given one by one, each with the earlier turns as context.

Prompts and history have the format of the authors' benchmark/mtpb_sample.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from codegen_jax.data.shards import describe_file, read_records
from codegen_jax.errors import listed, require
from codegen_jax.fields import in_words
from codegen_jax.mistaken_paths import missing
from codegen_jax.storage import open_path

PREFIX = "# Import libraries.\n\nimport numpy as np\n\n"  # the start of every history
PROBLEMS = 115  # in the whole benchmark, as used by the paper
MAX_NEW_TOKENS = 256  # per turn, unless the problem sets its own limit
MAX_DIGITS = 18  # in a problem's number


@dataclass(frozen=True)
class Case:
    """A problem with one of its inputs filled in, and the expected output.

    Attributes:
        problem: the problem's id in the benchmark file.
        case: index among the problem's cases, starting at 0.
        prompts: one prompt per turn with the input filled in, as a comment line ending in a newline.
        expected: the value that the program should print.
        max_new_tokens: limit per turn.
        given: the input.
    """

    problem: str
    case: int
    prompts: tuple[str, ...]
    expected: Any
    max_new_tokens: int
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        return f"{self.problem}/{self.case}"

    def history(self, completions: Sequence[str]) -> str:
        """The prefix, prompts and completions of these turns; with all turns completed, this is the program."""
        return PREFIX + "".join(f"{prompt}{text}\n\n" for prompt, text in zip(self.prompts, completions))

    def model_prompt(self, completions: Sequence[str]) -> str:
        """The text that the model completes after these turns."""
        return self.history(completions) + self.prompts[len(completions)]


def single_turn(case: Case) -> Case:
    """A case with all its prompts and token limits joined into one turn; the paper does not say how it joins them."""
    turns = len(case.prompts)
    return replace(case, prompts=("".join(case.prompts),), max_new_tokens=turns * case.max_new_tokens)


def read_cases(path: str) -> list[Case]:
    """The cases in a file such as the authors' mtpb.jsonl, sorted by problem number.

    If a problem has unequal numbers of inputs and outputs, the extra ones are ignored, as in the authors' script
    (problem 57).

    Raises:
        UserError: if the file can't be read, a line has a missing or invalid field, or an id occurs twice.
    """
    require(open_path(path).exists(), missing(path))
    problems, mistakes = dict[str, list[Case]](), list[str]()
    for line, _, record in read_records(path):
        found = record if isinstance(record, str) else _cases(record)
        if isinstance(found, str):
            mistakes.append(f"line {line}: {found}")
        elif found[0].problem in problems:
            mistakes.append(f"line {line}: id {found[0].problem} is repeated")
        else:
            problems[found[0].problem] = found
    what = describe_file(path) if mistakes and not problems else ""
    require(not what, f"{path}: {what}")
    require(not mistakes, f"{path}: {listed(mistakes)}; give MTPB's mtpb.jsonl")
    require(bool(problems), f"{path}: contains no problems; give MTPB's mtpb.jsonl")
    return [case for problem in sorted(problems, key=int) for case in problems[problem]]


def _cases(record: dict[str, Any]) -> list[Case] | str:
    """The cases of one line, or a description of what is wrong with it."""
    for name, kind in (("id", str), ("prompts", list), ("inputs", list), ("outputs", list)):
        if name not in record:
            return f"no field {name}"
        if type(record[name]) is not kind:
            return f"{name} is {record[name]!r:.40}, not {in_words(kind)}"
    problem, tokens = record["id"], record.get("max_gen_length", MAX_NEW_TOKENS)
    if not (problem.isascii() and problem.isdigit() and len(problem) <= MAX_DIGITS):
        return f"id is {problem!r:.40}, not a number of at most {MAX_DIGITS} digits"
    if type(tokens) is not int or tokens <= 0:
        return f"max_gen_length is {tokens!r:.40}, not a positive whole number"
    prompts, pairs = record["prompts"], list(zip(record["inputs"], record["outputs"]))
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        return "prompts must be a non-empty list of texts"
    if not pairs or not all(isinstance(given, dict) for given, _ in pairs):
        return "inputs must be a list of objects, at least one with an output"
    try:
        return [
            Case(problem, number, tuple(f"# {prompt.format(**given)}\n" for prompt in prompts), expected, tokens, given)
            for number, (given, expected) in enumerate(pairs)
        ]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        return f"a prompt can't be filled with its inputs ({type(error).__name__}: {error})"
