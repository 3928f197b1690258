"""Compares what MTPB's programs print with the expected values, like the authors' benchmark/mtpb_exec.py.

A value leaves the sandbox as plain data and is rebuilt here from builtin and NumPy types, so no object of the program
can influence the comparison. The conversion to the expected type has already happened in the sandbox
(inside/printed.py).
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
TOLERANCE = 1e-6  # for floats
DTYPE = re.compile(r"[biufc]\d{1,2}|U|O")


@dataclass(frozen=True)
class Printed:
    """How a program for an MTPB case is judged: by the last value that it prints.

    Attributes:
        case: the problem with its input and the expected value.
        checker: "official" reproduces the authors' verdicts: no program passes if a dict or None is expected (7 of 575
            cases). "repaired" compares dicts by equality and None by its text; all other verdicts are the same.
    """

    case: Case
    checker: Checker

    @property
    def task_id(self) -> str:
        return self.case.task_id


class _Unequal:
    """An object that equals only itself, and so no value in a JSON file."""


def difference(printed: Printed, report: Mapping[str, Any]) -> str:
    """What is wrong with the value that a program printed; "" if it is correct.

    Args:
        report: the report of the program's process. Both keys are optional: "value", as written by `encode` in
            inside/printed.py, and "printed", the beginning of its text.

    Raises:
        Exception: of any type, if the report has another form.
    """
    if "value" in report and _is_equal(decode(report["value"]), printed):
        return ""
    if "printed" not in report:
        return "no value was printed"
    if _is_unsupported(printed):
        why = "but the official checker fails every program for this case"
    else:
        why = "which is too large to compare" if "large" in report else "not the expected value"
    return f"printed {report['printed']}, {why}"


def _is_unsupported(printed: Printed) -> bool:
    """Whether the checker is the authors' and does not support the expected type, so no program passes."""
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
            if isinstance(value, np.ndarray):  # from a pandas Series; other arrays arrive as lists
                return bool(np.allclose(value, np.array(expected)))
            if type(value) is not type(expected):
                return False
            if isinstance(value, float):
                return abs(value - expected) < TOLERANCE
            return bool(value == expected)
    except (ValueError, TypeError, ArithmeticError):  # such as an array in a list, whose truth value is ambiguous
        return False


def decode(data: Any) -> Any:
    """Inverse of `encode` in inside/printed.py.

    Raises:
        Exception: of any type, for data that `encode` does not write.
    """
    if data is None or isinstance(data, bool | str):
        return data
    kind, *content = data
    if kind == "other":
        return _Unequal()
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
        return Fraction(*map(_integer, content))  # parsing a string such as "1e999999999" would take hours
    if kind == "list":
        return [decode(item) for item in content]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "numpy":
        dtype, shape, items = content
        if not DTYPE.fullmatch(dtype):
            raise ValueError(f"invalid dtype: {dtype}")
        if dtype == "U" and len(items) > 1:
            return _Unequal()  # equals no expected value, and each item would take as much memory as the longest
        array = np.empty(len(items), dtype if dtype != "U" else f"U{max(map(len, items), default=0)}")
        for index, item in enumerate(items):  # one by one, since an item of an object array may be a list
            array[index] = decode(item)
        array = array.reshape(shape)
        return array if shape else array[()]
    raise ValueError(f"unknown kind of value: {kind}")


def _integer(data: Any) -> int:
    kind, digits = data
    if kind != "int":
        raise ValueError(f"not an integer: {kind}")
    return int(digits, 16)
