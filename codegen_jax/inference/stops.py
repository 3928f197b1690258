"""Where a completion's text ends, and how much of an unfinished one can be shown."""

from collections.abc import Sequence
from typing import Literal

import regex

from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, truncate
from codegen_jax.errors import UserError, require

Truncate = Literal["codegen"] | None

# what a tokenizer writes for the bytes of a character that is not whole yet: at most 3 of 4
UNFINISHED = regex.compile("\ufffd{1,3}\\Z")


class Stops:
    """The rules that end a completion, beside eos.

    Args:
        pattern: regular expression, MULTILINE; the text ends before its first match.
        strings: likewise.
        truncate: codegen: the authors' sample.py, see `truncate`; made for functions, as in HumanEval.

    Raises:
        UserError: for what is no regular expression, or an empty string.
    """

    def __init__(self, pattern: str | None, strings: Sequence[str], truncate: Truncate):
        require(all(strings), "stop_strings: must not be empty")
        require(truncate in (None, "codegen"), f"truncate: {truncate!r} is not a rule; codegen is the only one")
        self.truncate = truncate == "codegen"
        try:
            expression = [regex.compile(pattern, regex.MULTILINE)] if pattern else []
        except regex.error as error:
            raise UserError(f"stop: {pattern!r} is not a regular expression ({error})") from error
        self.patterns = [regex.compile(regex.escape(string)) for string in strings] + expression
        rule = ["^print", "^def", *TRUNCATE_BEFORE] if self.truncate else []
        self.begun = self.patterns + [regex.compile(line, regex.MULTILINE) for line in rule]

        # an expression such as `x$` matches a text, and not the longer one
        self.may_pass = pattern is not None

    def __bool__(self) -> bool:
        return bool(self.begun)

    def end(self, text: str) -> int | None:
        """Where the text ends by these rules; None if nothing ends it yet. Half a character matches nothing."""
        text = UNFINISHED.sub("", text)
        starts = [match.start() for pattern in self.patterns if (match := pattern.search(text))]
        end = min(starts, default=len(text))
        if self.truncate:
            end = len(truncate(text[:end], TRUNCATE_BEFORE))
        return end if starts or end < len(text) else None

    def settled(self, text: str) -> int:
        """How much of a growing text will stay: what may be the begin of a stop, or of a character, is kept back."""
        begins = [
            match.start()
            for pattern in self.begun
            for match in pattern.finditer(text, partial=True)
            if match.partial  # not the whole match of a first `def` of the codegen rule
        ]
        return min([len(UNFINISHED.sub("", text)), *begins])
