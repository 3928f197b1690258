"""Verdicts on programs that are run against their problem's tests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

Outcome = Literal["passed", "failed", "exception", "timeout", "memory", "output", "forbidden", "sandbox error"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Verdict(NamedTuple):
    """How a program ended.

    Attributes:
        outcome: passed; failed: an assertion failed; exception: any other exception; timeout, memory, output: the limit
            that was exceeded; forbidden: the sandbox refused an operation; sandbox error: no verdict on the program.
        error: the last line of the error; "" if it passed.
        cpu_seconds: CPU time of the program and its tests.
        wall_seconds: wall-clock time of the program and its tests.
    """

    outcome: Outcome
    error: str
    cpu_seconds: float
    wall_seconds: float


# (reference by task_id, programs as (sample number, task_id, source)) -> (sample number, verdict), in any order
Judge = Callable[[Mapping[str, Any], Sequence[tuple[int, str, str]]], Iterator[tuple[int, Verdict]]]
