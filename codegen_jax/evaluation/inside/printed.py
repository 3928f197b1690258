"""The process of a program whose printed value is compared: runs it, and reports the last value that it printed.

Which value counts, and how it is converted to the expected type, follows the authors' benchmark/mtpb_exec.py. The
expected value itself never enters the sandbox, only its type; the comparison happens outside.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import random
import re
import reprlib
import resource
import signal
import sys
from decimal import Decimal
from fractions import Fraction

from frames import REPORT_PIPE
from program import describe

MAX_REPORT_CHARACTERS = 60_000  # characters that fit in a pipe before anything is read from it
MAX_SHOWN_CHARACTERS = 100  # characters of a value in a message
RESERVED_BYTES = 64 << 20  # reserved, so the result can still be reported after a program has used up its memory
TYPES = {"bool": bool, "dict": dict, "float": float, "int": int, "list": list, "str": str}
SERIES = ("<class 'pandas.core.series.Series'>", "<class 'pandas.Series'>")  # the second one since pandas 3
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# As in the authors' checker, `print` is a function in the program's own namespace, and its record is a variable there.
# A program that uses either name for something else therefore behaves the same here.
RECORDER = """
import builtins

def print(*args, **kwargs):
    print_stack.append({"args": args, "kwargs": kwargs})
    return builtins.print(*args, **kwargs)
"""


class TimeoutException(Exception):
    """Raised in a program when its time is up. If caught, the program has 1 more second of CPU time, or 10 s."""


class TooLarge(Exception):
    """A value of more than `MAX_REPORT_CHARACTERS` characters."""


def warm(packages):
    """Import NumPy, if installed, in the process that forks all programs."""
    if packages not in sys.path:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        sys.path.append(packages)
        with contextlib.suppress(ImportError):
            importlib.import_module("numpy")


def run(task):
    """Run the task's program, and report the last value that it printed, converted to the expected type if possible."""
    numpy, report = sys.modules.get("numpy"), {}
    namespace = {"print_stack": [], "__name__": "__main__"}
    exec(RECORDER, namespace)
    random.seed(0)
    if numpy:
        numpy.random.seed(0)
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit - RESERVED_BYTES, limit))
    try:
        raise_at_timeout(task["wall_seconds"], report)
        source = with_last_value_printed(task["program"])
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, namespace)
    except BaseException as error:
        report["raised"] = describe(error)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.setrecursionlimit(1000)
        value = namespace["print_stack"][-1]["args"][0]
        try:
            report["value"] = encode(as_expected(value, task["expected"], numpy), numpy, [MAX_REPORT_CHARACTERS])
        finally:
            report["printed"] = shorten(value)
    except TooLarge:
        report["large"] = True
    except BaseException as error:
        report["conversion_error"] = type(error).__name__
    send_report(report)


def raise_at_timeout(wall_seconds, report):
    """Raise an error in the program when it first reaches a time limit; after that, only a hard limit kills it."""

    def stop(*_):
        for number in (signal.SIGXCPU, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        report["timeout"] = True
        raise TimeoutException("Timed out!")

    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def with_last_value_printed(program):
    """The program changed to print the value of its last statement, if it has one and is not a call to print.

    The value of an assignment is printed, too; the variable is then None. Every function whose name begins with "print"
    counts as print.
    """
    try:
        tree = ast.parse(program)
        last = tree.body[-1]
        called = getattr(getattr(last, "value", None), "func", None)
        if isinstance(called, ast.Name) and called.id.startswith("print"):
            return program
        last.value = ast.Call(ast.Name("print", ast.Load()), [last.value], [])
        return ast.unparse(tree)
    except TimeoutException:
        raise
    except Exception:
        return program  # not valid Python, a last statement without a value, or nested too deeply


def as_expected(value, expected, numpy):
    """A printed value converted for comparison; raises any error from the conversion."""
    kind = type(value)
    if str(kind) in SERIES:
        return value.to_numpy()
    if kind is list:
        if value and type(value[0]) is tuple:
            value = [list(item) for item in value]
    elif numpy and kind in (numpy.uint8, numpy.int16, numpy.int32, numpy.int64):
        value = int(value)
    elif numpy and kind in (numpy.float16, numpy.float32, numpy.float64):
        value = float(value)
    elif numpy and kind is numpy.bool_:
        value = bool(value)
    elif numpy and kind is numpy.ndarray:
        value = value.tolist()
    if expected == "NoneType":
        return str(value)
    if type(value) is TYPES[expected]:
        return value
    value = str(value) if expected == "bool" else TYPES[expected](value)
    if type(value) is not (str if expected == "bool" else TYPES[expected]):
        raise TypeError  # such as a subclass of str returned by a __str__
    return value


def encode(value, numpy, budget):
    """A value as JSON for `decode` in mtpb/printed.py, encoded by the builtin or NumPy base of its type.

    Objects of the program's own classes, and types that no value in a JSON file equals, become ["other"].

    Args:
        budget: a list with one number: the characters that may still be used.
    """
    spend(8, budget)
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        spend(str.__len__(value), budget)
        return str.__str__(value)
    if numpy and isinstance(value, numpy.generic | numpy.ndarray):
        return encode_numpy(value, numpy, budget)
    if isinstance(value, int):
        spend(int.bit_length(value) // 4, budget)
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(complex.__getattribute__(value, part)) for part in ("real", "imag")]]
    if isinstance(value, Decimal):
        return ["Decimal", Decimal.__str__(value)]
    if isinstance(value, Fraction):
        return ["Fraction", [encode(int(part), numpy, budget) for part in (value.numerator, value.denominator)]]
    if isinstance(value, list):
        return ["list", [encode(item, numpy, budget) for item in list.__iter__(value)]]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[encode(key, numpy, budget), encode(item, numpy, budget)] for key, item in pairs]]
    return ["other"]


def spend(characters, budget):
    budget[0] -= characters
    if budget[0] < 0:
        raise TooLarge


def encode_numpy(value, numpy, budget):
    """An array or scalar of numbers, text or objects as dtype, shape and items."""
    kind, dtype = value.dtype.kind, value.dtype.str[1:]
    spend(8 * value.size, budget)
    if kind not in "biufcUO":
        return ["other"]
    if kind in "UO":
        dtype = kind
    elif value.dtype.itemsize > numpy.dtype(complex if kind == "c" else float).itemsize:
        dtype = "c16" if kind == "c" else "f8"  # a long double has no portable text form
    items = numpy.asarray(value).astype(dtype).ravel().tolist()
    return ["numpy", [dtype, list(value.shape), [encode(item, numpy, budget) for item in items]]]


def shorten(value):
    """The beginning of a value's text on one line, for a message, without addresses, which vary between runs."""
    short = reprlib.Repr()
    short.maxother = short.maxlong = 10_000
    short.maxstring = MAX_SHOWN_CHARACTERS
    try:
        text = " ".join(re.sub("0x[0-9a-f]+", "0x...", short.repr(value)).split())
    except TimeoutException:
        raise
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."


def send_report(report):
    """Write the report without blocking, even if the program has filled the pipe."""
    content = json.dumps(report).encode()
    if len(content) > MAX_REPORT_CHARACTERS:
        content = json.dumps({name: report[name] for name in report if name != "value"} | {"large": True}).encode()
    os.set_blocking(REPORT_PIPE, False)
    os.write(REPORT_PIPE, content)
