"""For dataclasses whose fields users set: check types, put types into words, and extract the documentation."""

import collections.abc
import dataclasses
import difflib
import math
import types
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from codegen_jax.errors import UserError, require

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_fields(instance: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first field that has a value of the wrong type, or a NaN or infinite value.

    Call it in `__post_init__`.

    >>> @dataclasses.dataclass
    ... class Model:
    ...     n_layer: int
    >>> check_fields(Model(n_layer="two"), prefix="model.")
    Traceback (most recent call last):
        ...
    codegen_jax.errors.UserError: model.n_layer: must be a whole number, got 'two'
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        name, value = prefix + field.name, getattr(instance, field.name)
        check_type(name, value, hints[field.name])
        is_fraction = isinstance(value, Real) and not isinstance(value, Integral)
        require(not is_fraction or math.isfinite(value), f"{name}: must be finite, got {value}")


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise a `UserError` that begins with `name` if a value does not match a type."""
    if not _matches(value, hint):
        given = repr(value)
        raise UserError(f"{name}: must be {in_words(hint)}, got {given if len(given) < 80 else given[:77] + '...'}")


def in_words(hint: Any) -> str:
    """Put a type into words: `list[int] | None` is "a list of whole numbers"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return f"{'one of ' * (len(arguments) > 1)}{', '.join(map(str, arguments))}"
    if origin in (list, collections.abc.Sequence):
        item = in_words(arguments[0]).removeprefix("a ")
        return f"a list of {item if item == 'text' else item.replace(' ', 's ', 1) if ' of ' in item else item + 's'}"
    if origin is dict and arguments[0] is str:
        return "a section of names"
    if origin is dict:
        key, item = (in_words(argument).removeprefix("a ") for argument in arguments)
        return f"a dict from {key}s to {item}s"
    return f"a {hint.__name__}"


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(_matches(item, arguments[0]) for item in value)
    if origin is dict:
        key, item = arguments
        return isinstance(value, dict) and all(_matches(k, key) and _matches(v, item) for k, v in value.items())
    if hint in (int, float):  # NumPy numbers match, too, and so do integers for float; bool does not
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def documentation(cls: type) -> dict[str, str]:
    """The text of each field in the "Attributes" sections of a dataclass and its base classes."""
    from docstring_parser import parse

    docs = [parse(base.__doc__ or "") for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    return {item.arg_name: " ".join((item.description or "").split()) for doc in docs for item in doc.params}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ "; did you mean NAME?" if `name` is close to one of `names`, else an empty string."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""
