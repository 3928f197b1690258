"""The process of a program whose printed value is compared: run it, and say which value it printed last.

Which value that is, and how its type becomes the expected one's, follows the authors' benchmark/mtpb_exec.py. The
expected value itself never comes here: only its type does, and the comparison is made outside.
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

from frames import SAYING
from program import describe

MOST_SAID = 60_000  # characters that a pipe holds while nobody reads it
MOST_SHOWN = 100  # characters of a value in a message
ROOM_BYTES = 64 << 20  # kept from a program, so that one which took all its memory can still say what it printed
TYPES = {"bool": bool, "dict": dict, "float": float, "int": int, "list": list, "str": str}
SERIES = ("<class 'pandas.core.series.Series'>", "<class 'pandas.Series'>")  # of pandas 3, too
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# `print` is a function of the program's own namespace and its record a variable there, as in the authors' checker, so
# that a program that has either name for something else fares as it does there.
RECORDER = """
import builtins

def print(*args, **kwargs):
    print_stack.append({"args": args, "kwargs": kwargs})
    return builtins.print(*args, **kwargs)
"""


class TimeoutException(Exception):
    """Raised in a program whose time is over. It may catch it, and has about a second then."""


class TooLarge(Exception):
    """A value of more than `MOST_SAID` characters."""


def warm(packages):
    """Import numpy, where it is installed, in the process that forks all programs."""
    if packages not in sys.path:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        sys.path.append(packages)
        with contextlib.suppress(ImportError):
            importlib.import_module("numpy")


def run(task):
    """Run `task`'s program, and say what it printed last, as a value of the type `task["expected"]` where it can be."""
    numpy, said = sys.modules.get("numpy"), {}
    namespace = {"print_stack": [], "__name__": "__main__"}
    exec(RECORDER, namespace)
    random.seed(0)
    if numpy:
        numpy.random.seed(0)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most - ROOM_BYTES, most))
    try:
        stop_once(task["wall_seconds"], said)
        source = with_last_value_printed(task["program"])
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, namespace)
    except BaseException as error:
        said["raised"] = describe(error)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        sys.setrecursionlimit(1000)
        value = namespace["print_stack"][-1]["args"][0]
        try:
            said["value"] = encode(as_expected(value, task["expected"], numpy), numpy, [MOST_SAID])
        finally:
            said["printed"] = in_short(value)
    except TooLarge:
        said["large"] = True
    except BaseException as error:
        said["unlike"] = type(error).__name__
    say(said)


def stop_once(wall_seconds, said):
    """Have the first end of a time limit raise an error wherever the program is; the second one's kills it."""

    def stop(*_):
        for number in (signal.SIGXCPU, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        said["over time"] = True
        raise TimeoutException("Timed out!")

    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def with_last_value_printed(program):
    """A program that prints the value of its last statement, where that has one and is no call of print itself.

    The value of an assignment is printed, too, and what is assigned is None then. Every function whose name begins with
    "print" counts as print.
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
        return program  # one that is no Python, whose last statement has no value, or that nests too deeply


def as_expected(value, expected, numpy):
    """A printed value as it is to be compared; raises what its conversions raise."""
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
        raise TypeError  # such as the subclass of str that a __str__ may return
    return value


def encode(value, numpy, left):
    """A value as JSON that `decode` of mtpb/printed.py reads, by the builtin or numpy base of its type.

    No object of the program's own comes through, and nothing that no value of a JSON file equals: ["other"].

    Args:
        left: how many characters it may still have, in a list of one number.
    """
    take(8, left)
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        take(str.__len__(value), left)
        return str.__str__(value)
    if numpy and isinstance(value, numpy.generic | numpy.ndarray):
        return encode_numpy(value, numpy, left)
    if isinstance(value, int):
        take(int.bit_length(value) // 4, left)
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(complex.__getattribute__(value, part)) for part in ("real", "imag")]]
    if isinstance(value, Decimal):
        return ["Decimal", Decimal.__str__(value)]
    if isinstance(value, Fraction):
        return ["Fraction", [encode(int(part), numpy, left) for part in (value.numerator, value.denominator)]]
    if isinstance(value, list):
        return ["list", [encode(item, numpy, left) for item in list.__iter__(value)]]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[encode(key, numpy, left), encode(item, numpy, left)] for key, item in pairs]]
    return ["other"]


def take(characters, left):
    left[0] -= characters
    if left[0] < 0:
        raise TooLarge


def encode_numpy(value, numpy, left):
    """An array or scalar of numbers, text or objects: its dtype, shape and items."""
    kind, dtype = value.dtype.kind, value.dtype.str[1:]
    take(8 * value.size, left)
    if kind not in "biufcUO":
        return ["other"]
    if kind in "UO":
        dtype = kind
    elif value.dtype.itemsize > numpy.dtype(complex if kind == "c" else float).itemsize:
        dtype = "c16" if kind == "c" else "f8"  # a long double has no form in text that all machines read
    items = numpy.asarray(value).astype(dtype).ravel().tolist()
    return ["numpy", [dtype, list(value.shape), [encode(item, numpy, left) for item in items]]]


def in_short(value):
    """The beginning of a value's text in one line, for a message, without what is another each time."""
    short = reprlib.Repr()
    short.maxother = short.maxlong = 10_000
    short.maxstring = MOST_SHOWN
    try:
        text = " ".join(re.sub("0x[0-9a-f]+", "0x...", short.repr(value)).split())
    except TimeoutException:
        raise
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def say(said):
    """One message, at once: a program that has filled the pipe does not hold this up."""
    content = json.dumps(said).encode()
    if len(content) > MOST_SAID:
        content = json.dumps({name: said[name] for name in said if name != "value"} | {"large": True}).encode()
    os.set_blocking(SAYING, False)
    os.write(SAYING, content)
