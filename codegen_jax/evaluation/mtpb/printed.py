"""What MTPB's programs print, compared with what they should, as the authors' benchmark/mtpb_exec.py does it.

A value comes from the sandbox as plain data and becomes one of builtin or numpy types here, where no object of the
program has a say. Its conversion to the expected type has taken place inside (inside/printed.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

from codegen_jax.evaluation.mtpb.cases import Case

Checker = Literal["official", "repaired"]
CHECKERS: tuple[Checker, ...] = get_args(Checker)
TOLERANCE = 1e-6  # of floats
DTYPE = re.compile(r"[biufc]\d{1,2}|U|O")


@dataclass(frozen=True)
class Printed:
    """What a program is judged by that solves a case of MTPB: the value that it prints last.

    Attributes:
        case: the problem with its input, and the value.
        checker: "official" gives the authors' verdicts, with whom no program passes where a dict or None is expected
            (7 of 575 cases). "repaired" compares dicts by equality and None by its text; it gives no other verdict
            elsewhere.
    """

    case: Case
    checker: Checker

    @property
    def task_id(self) -> str:
        return self.case.task_id


class _Other:
    """Equal to nothing but itself: an object that no value of a JSON file equals."""


def difference(printed: Printed, said: Mapping[str, Any]) -> str:
    """What is wrong with a program's printed value, "" where nothing is.

    Args:
        said: the word of the program's process: "value" in the form of `encode` of inside/printed.py, or none, and
            "printed", the beginning of its text, or none.

    Raises:
        Exception: for a word in another form, of any type.
    """
    if "value" in said and _is_equal(decode(said["value"]), printed):
        return ""
    if "printed" not in said:
        return "no value was printed"
    if _is_unsupported(printed):
        why = "and no program passes here with the official checker"
    else:
        why = "which is too large to be compared" if "large" in said else "not what is expected"
    return f"printed {said['printed']}, {why}"


def _is_unsupported(printed: Printed) -> bool:
    """Whether the authors' checker has no comparison for the type, so that it passes no program."""
    return printed.checker == "official" and isinstance(printed.case.expected, dict | None)


def _is_equal(value: Any, printed: Printed) -> bool:
    expected: Any = printed.case.expected
    if _is_unsupported(printed):
        return False
    if expected is None:
        expected = "None"
    elif isinstance(expected, bool) and type(value) is str:
        expected = str(expected)
    try:
        with np.errstate(all="ignore"):
            if isinstance(value, np.ndarray):  # of a pandas Series; others came as lists
                return bool(np.allclose(value, np.array(expected)))
            if type(value) is not type(expected):
                return False
            if isinstance(value, float):
                return abs(value - expected) < TOLERANCE
            return bool(value == expected)
    except (ValueError, TypeError, ArithmeticError):  # such as of an array in a list, which has no one truth
        return False


def decode(data: Any) -> Any:
    """The value of what `encode` of inside/printed.py writes.

    Raises:
        Exception: for what it does not write, of any type.
    """
    if data is None or isinstance(data, bool | str):
        return data
    kind, *content = data
    if kind == "other":
        return _Other()
    (content,) = content
    if kind == "int":
        return _integer(data)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    if kind == "Decimal":
        return Decimal(content)
    if kind == "Fraction":
        return Fraction(*map(_integer, content))  # of a text such as "1e999999999" it would be made for hours
    if kind == "list":
        return [decode(item) for item in content]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "numpy":
        dtype, shape, items = content
        if not DTYPE.fullmatch(dtype):
            raise ValueError(f"no dtype: {dtype}")
        if dtype == "U" and len(items) > 1:
            return _Other()  # it equals nothing, and each item would take the room of the longest
        array = np.empty(len(items), dtype if dtype != "U" else f"U{max(map(len, items), default=0)}")
        for place, item in enumerate(items):  # one by one, since an item of an array of objects may be a list
            array[place] = decode(item)
        array = array.reshape(shape)
        return array if shape else array[()]
    raise ValueError(f"no kind of value: {kind}")


def _integer(data: Any) -> int:
    kind, digits = data
    if kind != "int":
        raise ValueError(f"no integer: {kind}")
    return int(digits, 16)
