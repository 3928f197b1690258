"""Former public names, in Python and on the command line: they still work, with a warning that gives the new name."""

import inspect
import logging
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, TypeVar

from codegen_jax.errors import require

RENAMED = {"num_guesses": "num_draft_tokens", "rows": "batch_size"}

T = TypeVar("T", bound=Callable[..., Any])
log = logging.getLogger(__name__)


def accepts_former_names(target: T) -> T:
    """Decorate a function or class so that its keywords may also be given by their former names."""
    function: Any = target.__init__ if isinstance(target, type) else target
    known = inspect.signature(function).parameters

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        return function(*args, **current_keywords(keywords, known))

    if not isinstance(target, type):
        return call  # pyright: ignore[reportReturnType]
    target.__init__ = call  # pyright: ignore[reportAttributeAccessIssue]
    return target  # pyright: ignore[reportReturnType]


def current_keywords(keywords: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The keywords, with former names of `known` ones replaced. Warns once per former name.

    Raises:
        UserError: if a value is given by both names.
    """
    for old, new in RENAMED.items():
        if old in keywords and new in known:
            _require_one(old, new, keywords)
            warnings.warn(f"{old} is deprecated; use {new}", DeprecationWarning, stacklevel=_caller())
            keywords = {new if name == old else name: value for name, value in keywords.items()}
    return keywords


def current_flags(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The words of a command line, with former names of `known` flags replaced; like `current_keywords`."""
    words = list(words)
    for old, new in (("--" + name.replace("_", "-") for name in pair) for pair in RENAMED.items()):
        given = [word.partition("=")[0] for word in words]
        if old in given and new in known:
            _require_one(old, new, given)
            log.warning(f"{old} is deprecated; use {new}")
            words = [new + word.removeprefix(old) if name == old else word for name, word in zip(given, words)]
    return words


def _require_one(old: str, new: str, given: Collection[str]) -> None:
    require(new not in given, f"{new}: was also given by its former name {old}; give only {new}")


def _caller() -> int:
    """The `stacklevel` of the first frame outside this package, which Python shows with the warning."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level
