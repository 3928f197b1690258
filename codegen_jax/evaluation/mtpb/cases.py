"""MTPB, the paper's benchmark: a problem's prompts come one by one, each answered with the earlier code in view.

The form of prompts and history is that of the authors' benchmark/mtpb_sample.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from codegen_jax.data.shards import read_records, what_it_is
from codegen_jax.errors import listed, require
from codegen_jax.mistaken_paths import missing
from codegen_jax.storage import open_path

PREFIX = "# Import libraries.\n\nimport numpy as np\n\n"  # what every history begins with
PROBLEMS = 115  # of the whole benchmark, which the paper's figures are of
MAX_NEW_TOKENS = 256  # per turn, of a problem that does not say
MOST_DIGITS = 18  # of a problem's number


@dataclass(frozen=True)
class Case:
    """A problem with one of its inputs filled in, and the output that this should have.

    Attributes:
        problem: its id in the benchmark's file.
        case: its number among the problem's, from 0.
        prompts: of each turn with the input filled in, as comments with their line's end.
        expected: the value to print.
        max_new_tokens: per turn.
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
        """What the model has seen and said when these turns are done; with all of them it is the program."""
        return PREFIX + "".join(f"{prompt}{text}\n\n" for prompt, text in zip(self.prompts, completions))

    def model_prompt(self, completions: Sequence[str]) -> str:
        """What the model is given to complete after these turns."""
        return self.history(completions) + self.prompts[len(completions)]


def single_turn(case: Case) -> Case:
    """A case with all its prompts in one turn, which may have the tokens of all; the paper gives no construction."""
    turns = len(case.prompts)
    return replace(case, prompts=("".join(case.prompts),), max_new_tokens=turns * case.max_new_tokens)


def read_cases(path: str) -> list[Case]:
    """The cases of a file such as the authors' mtpb.jsonl, by their problems' numbers.

    Of inputs and outputs of unequal number the shorter list counts, as in the authors' script (problem 57).

    Raises:
        UserError: if the file can't be read, a line lacks a field or has a wrong one, or two have one id.
    """
    require(open_path(path).exists(), missing(path))
    problems, mistakes = dict[str, list[Case]](), list[str]()
    for line, _, record in read_records(path):
        found = record if isinstance(record, str) else _cases(record)
        if isinstance(found, str):
            mistakes.append(f"line {line}: {found}")
        elif found[0].problem in problems:
            mistakes.append(f"line {line}: id {found[0].problem} was there before")
        else:
            problems[found[0].problem] = found
    what = what_it_is(path) if mistakes and not problems else ""
    require(not what, f"{path}: {what}")
    require(not mistakes, f"{path}: {listed(mistakes)}; give MTPB's mtpb.jsonl")
    require(bool(problems), f"{path}: holds no problems; give MTPB's mtpb.jsonl")
    return [case for problem in sorted(problems, key=int) for case in problems[problem]]


def _cases(record: dict[str, Any]) -> list[Case] | str:
    """A line's cases, or what is wrong with it."""
    for name, kind in (("id", str), ("prompts", list), ("inputs", list), ("outputs", list)):
        if name not in record:
            return f"no field {name}"
        if type(record[name]) is not kind:
            return f"{name} is {record[name]!r:.40}, which is no {kind.__name__}"
    problem, tokens = record["id"], record.get("max_gen_length", MAX_NEW_TOKENS)
    if not (problem.isascii() and problem.isdigit() and len(problem) <= MOST_DIGITS):
        return f"id is {problem!r:.40}, which is no number of up to {MOST_DIGITS} digits"
    if type(tokens) is not int or tokens <= 0:
        return f"max_gen_length is {tokens!r:.40}, which is no positive number"
    prompts, pairs = record["prompts"], list(zip(record["inputs"], record["outputs"]))
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        return "prompts must hold texts"
    if not pairs or not all(isinstance(given, dict) for given, _ in pairs):
        return "inputs must hold objects, and outputs as many values"
    try:
        return [
            Case(problem, number, tuple(f"# {prompt.format(**given)}\n" for prompt in prompts), expected, tokens, given)
            for number, (given, expected) in enumerate(pairs)
        ]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        return f"a prompt can't be filled with its inputs ({type(error).__name__}: {error})"
