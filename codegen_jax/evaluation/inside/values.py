"""Values that cross between a program and its tests, as JSON: builtin types only, nothing is unpickled.

Decimal and Fraction count as numbers, too, since solutions return them where tests have an int or a float. A value of a
subclass crosses as its base type, so no method of the program decides a comparison. Other objects stay where they are,
and a `Handle` represents them on the other side.
"""

import builtins
import itertools
import sys
import types
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_ITEMS = 1_000_000  # items read from an iterator when it crosses

VIEWS = {"keys": type({}.keys()), "values": type({}.values()), "items": type({}.items())}
SOURCES = ([], (), {}, set(), "", "\u00e9", b"", range(0), {}.values(), {}.items(), reversed([]), iter(int, 0))
ITERATORS = (map, filter, zip, enumerate, reversed, types.GeneratorType, *(type(iter(source)) for source in SOURCES))
BASES: tuple[Any, ...] = (list, tuple, set, frozenset)


class Handle:
    """Represents an object of the program in the tests; attribute access and calls are sent to the program.

    It supports no comparison, number conversion or length: the program could make up the result.
    """

    def __init__(self, ask, number):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __bool__(self):
        return self._ask("bool", self._number) is True

    def __call__(self, *args, **kwargs):
        return self._ask("call", self._number, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", self._number, (name,), {})

    def __setattr__(self, name, value):
        self._ask("setattr", self._number, (name, value), {})


def encode(value, store):
    """A value as JSON; `store` keeps an object without a builtin form and returns its number."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind.__module__.partition(".")[0] == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(complex.__getattribute__(value, part)) for part in ("real", "imag")]]
    if isinstance(value, Decimal):
        return ["Decimal", Decimal.__str__(value)]
    if isinstance(value, Fraction):
        return ["Fraction", [encode(value.numerator, store), encode(value.denominator, store)]]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", bytes(memoryview(value)).hex()]
    for base in BASES:
        if isinstance(value, base):
            return [base.__name__, [encode(item, store) for item in base.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, store), encode(item, store)] for key, item in dict.items(value)]]
    if kind is range:
        return ["range", [encode(part, store) for part in (value.start, value.stop, value.step)]]
    for name, view in VIEWS.items():
        if kind is view:
            return [name, [encode(item, store) for item in value]]
    if kind in ITERATORS or (kind.__module__ == "itertools" and hasattr(kind, "__next__")):
        return ["iterator", [encode(item, store) for item in itertools.islice(value, MAX_ITEMS)]]
    if kind is types.ModuleType and sys.modules.get(value.__name__) is value:
        return ["module", value.__name__]
    if kind is type and getattr(builtins, value.__name__, None) is value:
        return ["builtin", value.__name__]
    return ["object", store(value)]


def decode(data, find):
    """Inverse of `encode`; `find` returns the object with a given number.

    Raises:
        ValueError: for data that `encode` does not write.
    """
    if data is None or isinstance(data, bool | str):
        return data
    if not (isinstance(data, list) and len(data) == 2 and isinstance(data[0], str)):
        raise ValueError("not an encoded value")
    kind, content = data
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    if kind == "Decimal":
        return Decimal(content)
    if kind == "Fraction":
        numerator, denominator = (decode(part, find) for part in content)
        return Fraction(numerator, denominator)
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(content)
    if kind == "module":
        return __import__("importlib").import_module(content)
    if kind == "builtin" and isinstance(getattr(builtins, content, None), type):
        return getattr(builtins, content)
    if kind == "object":
        return find(content)
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    items = [decode(item, find) for item in content]
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(items)
    if kind == "range":
        return range(*items)
    if kind == "iterator":
        return iter(items)
    if kind == "keys":
        return dict.fromkeys(items).keys()
    if kind == "values":
        return dict(enumerate(items)).values()
    if kind == "items":
        return dict(items).items()
    raise ValueError(f"unknown kind of value: {kind}")
