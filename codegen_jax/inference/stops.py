"""Where a completion's text ends, and how much of an unfinished one can be shown."""

import re
from typing import Literal

import regex

from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, truncate
from codegen_jax.errors import UserError, require

Truncate = Literal["codegen"] | None

REPLACEMENT = "\ufffd"  # what a tokenizer writes for the bytes of a character that is not whole yet


class Stops:
    """The rules that end a completion, beside eos.

    Args:
        pattern: regular expression, MULTILINE; the text ends before its first match.
        strings: likewise.
        truncate: codegen: the authors' sample.py, see `truncate`; made for functions, as in HumanEval.

    Raises:
        UserError: for what is no regular expression, or an empty string.
    """

    def __init__(self, pattern: str | None, strings: list[str], truncate: Truncate):
        require(all(strings), "--stop-string: must not be empty")
        require(truncate in (None, "codegen"), f"--truncate: {truncate!r} is not a rule; codegen is the only one")
        alternatives = [re.escape(string) for string in strings] + ([pattern] if pattern else [])
        self.truncate = truncate == "codegen"
        shown = alternatives + (["^print", "^def", *TRUNCATE_BEFORE] if self.truncate else [])
        try:
            self.pattern = re.compile("|".join(alternatives), re.MULTILINE) if alternatives else None
            self.begun = regex.compile("|".join(f"(?:{a})" for a in shown), regex.MULTILINE) if shown else None
        except (re.error, regex.error) as error:
            raise UserError(f"--stop: {pattern!r} is not a regular expression ({error})") from error

        # an expression such as `x$` matches a text, and not the longer one
        self.may_pass = pattern is not None

    def __bool__(self) -> bool:
        return self.begun is not None

    def end(self, text: str) -> int | None:
        """Where the text ends by these rules; None if nothing ends it yet."""
        match = self.pattern.search(text) if self.pattern else None
        end = match.start() if match else len(text)
        if self.truncate:
            end = len(truncate(text[:end], TRUNCATE_BEFORE))
        return end if match or end < len(text) else None

    def settled(self, text: str) -> int:
        """How much of a growing text will stay: what may be the begin of a stop, or of a character, is kept back."""
        settled = len(text.rstrip(REPLACEMENT))
        match = self.begun.search(text, partial=True) if self.begun else None
        while match and not match.partial:  # a first `def` of the codegen rule
            match = self.begun.search(text, match.end() + (match.end() == match.start()), partial=True)  # pyright: ignore
        return min(settled, match.start()) if match else settled
