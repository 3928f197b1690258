"""What becomes of a program that is run against its problem's tests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

Outcome = Literal["passed", "failed", "exception", "timeout", "memory", "output", "forbidden", "sandbox error"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Verdict(NamedTuple):
    """How a program ended.

    Attributes:
        outcome: passed; failed, of an assertion; exception, another one; timeout, memory, output: the limit that it
            went over; forbidden, what the sandbox refused it; sandbox error, which says nothing of the program.
        error: the last line of the error; "" of what passed.
        cpu_seconds: of the program and its tests.
        wall_seconds: of the same.
    """

    outcome: Outcome
    error: str
    cpu_seconds: float
    wall_seconds: float


# From what judges, by task_id, and programs (number of the sample, task_id, text) to (number, verdict), in any order
Judge = Callable[[Mapping[str, Any], Sequence[tuple[int, str, str]]], Iterator[tuple[int, Verdict]]]
