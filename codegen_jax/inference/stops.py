"""Where a completion's text ends, and how much of an unfinished completion is final."""

from collections.abc import Sequence
from typing import Literal

import regex

from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, truncate
from codegen_jax.errors import UserError, require

Truncate = Literal["codegen"] | None

# a tokenizer decodes the bytes of an incomplete character, at most 3 of 4, to replacement characters
UNFINISHED = regex.compile("\ufffd{1,3}\\Z")


class Stops:
    """The rules that end a completion, in addition to eos.

    Args:
        pattern: regular expression (MULTILINE); the text ends before its first match.
        strings: the text ends before the first occurrence of any of them.
        truncate: "codegen" applies the rule of the authors' sample.py (see `truncate`), which suits the completion of
            functions, as in HumanEval.

    Raises:
        UserError: for an invalid regular expression, an empty stop string or an unknown `truncate`.
    """

    def __init__(self, pattern: str | None, strings: Sequence[str], truncate: Truncate):
        require(all(strings), "stop_strings: must not contain an empty string")
        require(truncate in (None, "codegen"), f"truncate: must be codegen or None, got {truncate!r}")
        self.truncate = truncate == "codegen"
        try:
            expression = [regex.compile(pattern, regex.MULTILINE)] if pattern else []
        except regex.error as error:
            raise UserError(f"stop: {pattern!r} is not a valid regular expression ({error})") from error
        self.patterns = [regex.compile(regex.escape(string)) for string in strings] + expression
        rule = ["^print", "^def", *TRUNCATE_BEFORE] if self.truncate else []
        self.partial_patterns = self.patterns + [regex.compile(line, regex.MULTILINE) for line in rule]

        # a pattern such as `x$` may match a text but not its continuation
        self.may_unmatch = pattern is not None

    def __bool__(self) -> bool:
        return bool(self.partial_patterns)

    def end(self, text: str) -> int | None:
        """Index at which the text ends, or None if nothing ends it yet. An incomplete character matches nothing."""
        text = UNFINISHED.sub("", text)
        starts = [match.start() for pattern in self.patterns if (match := pattern.search(text))]
        end = min(starts, default=len(text))
        if self.truncate:
            end = len(truncate(text[:end], TRUNCATE_BEFORE))
        return end if starts or end < len(text) else None

    def final_length(self, text: str) -> int:
        """Length of the part of a growing text that is final: excludes a possible start of a stop or character."""
        starts = [
            match.start()
            for pattern in self.partial_patterns
            for match in pattern.finditer(text, partial=True)
            if match.partial  # a full match, such as the codegen rule's first `def`, does not count
        ]
        return min([len(UNFINISHED.sub("", text)), *starts])
