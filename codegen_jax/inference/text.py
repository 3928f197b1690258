"""The text of a completion that grows: decoding a few tokens at a time, where it ends, and how much of it is final."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import regex

from codegen_jax.data.tokenizer import END_OF_TEXT, TRUNCATE_BEFORE, Tokenizer, truncate
from codegen_jax.errors import UserError, require

Truncate = Literal["codegen"] | None

# a tokenizer decodes the bytes of an incomplete character, at most 3 of 4, to replacement characters
REPLACEMENT = "\ufffd"
UNFINISHED = regex.compile(f"{REPLACEMENT}{{1,3}}\\Z")

# the expressions of the codegen rule, and the length of the longest text that one of them matches
CODEGEN_RULE = ("^print", "^def", *TRUNCATE_BEFORE)
LONGEST_OF_RULE = len(END_OF_TEXT)

# Seconds for one search of a user's expression, since some expressions try exponentially many ways to match. A usual
# search takes microseconds, so a limit far above that is safe although `regex` counts the time of all threads.
TIMEOUT = 1


class Stops:
    """The rules that end a completion, in addition to eos.

    Args:
        pattern: regular expression (MULTILINE); the text ends before its first match.
        strings: the text ends before the first occurrence of any of them.
        truncate: "codegen" applies the rule of the authors' sample.py (see `truncate`), which suits the completion of
            functions, as in HumanEval.

    Attributes:
        may_unmatch: whether a text may have a stop, but not its continuation.

    Raises:
        UserError: for an invalid regular expression, an empty stop string or an unknown `truncate`.
    """

    def __init__(self, pattern: str | None, strings: Sequence[str], truncate: Truncate):
        require(all(strings), "stop_strings: must not contain an empty string")
        require(truncate in (None, "codegen"), f"truncate: must be codegen or None, got {truncate!r}")
        self.pattern, self.truncate = pattern, truncate == "codegen"
        try:
            expression = [regex.compile(pattern, regex.MULTILINE)] if pattern else []
        except regex.error as error:
            raise UserError(f"stop: {pattern!r} is not a valid regular expression ({error})") from error
        escaped = [regex.escape(string) for string in strings]
        rule = CODEGEN_RULE if self.truncate else ()
        self.patterns = [regex.compile(string) for string in escaped] + expression
        self.partial_patterns = self.patterns + [regex.compile(line, regex.MULTILINE) for line in rule]

        # a pattern such as `x$` may match a text but not its continuation; so may a string with a replacement character
        self.may_unmatch = pattern is not None or any(REPLACEMENT in string for string in strings)
        self._bounded = pattern is None
        self._longest = max([LONGEST_OF_RULE * self.truncate, *map(len, strings)])
        self._any = regex.compile("|".join([*escaped, *rule]), regex.MULTILINE)

    def __bool__(self) -> bool:
        return bool(self.partial_patterns)

    def end(self, text: str, searched: int = 0) -> int | None:
        """Index at which the text ends, or None if nothing ends it yet. An incomplete character matches nothing.

        Args:
            text: the text.
            searched: number of characters that the text grew from and that no stop ended, which saves time.

        Raises:
            UserError: if the search for the regular expression takes more than `TIMEOUT`.
        """
        if searched and self._bounded and not self._any.search(text, max(0, searched - self._longest)):
            return None
        text = UNFINISHED.sub("", text)
        with self._time_limit(text):
            matches = [pattern.search(text, timeout=TIMEOUT) for pattern in self.patterns]
        starts = [match.start() for match in matches if match]
        end = min(starts, default=len(text))
        if self.truncate:
            end = len(truncate(text[:end], TRUNCATE_BEFORE))
        return end if starts or end < len(text) else None

    def final_length(self, text: str) -> int:
        """Length of the part of a growing text that is final: excludes a possible start of a stop or character.

        Raises:
            UserError: as for `end`.
        """
        text = UNFINISHED.sub("", text)
        first = max(0, len(text) - self._longest) if self._bounded else 0
        with self._time_limit(text):
            starts = [
                match.start()
                for pattern in self.partial_patterns
                for match in pattern.finditer(text, first, partial=True, timeout=TIMEOUT)
                if match.partial  # a full match, such as the codegen rule's first `def`, does not count
            ]
        return min([len(text), *starts])

    @contextmanager
    def _time_limit(self, text: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise UserError(
                f"stop: {self.pattern!r} took more than {TIMEOUT} second on a completion of {len(text)} characters; "
                "simplify the expression"
            ) from error


class Text:
    """The text of a completion that grows token by token, and where a stop ends it.

    The text always equals what the tokenizer decodes from all ids, but only the last few are decoded: those of the
    previous call, whose text is known, and the new ones. The known part tells where the new text begins, since some
    tokenizers decode the first ids differently, for example without a leading space.

    Args:
        tokenizer: decodes the ids.
        stops: the rules that end the text.
        min_tokens: a stop ends the text once there are at least this many tokens.

    Attributes:
        ids: the ids so far; after a stop, up to the token that completed it.
        text: the text of these ids; after a stop, it ends before it.
        ended: whether a stop has ended the text.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Stops, min_tokens: int = 0):
        self.tokenizer, self.stops, self.min_tokens = tokenizer, stops, min_tokens
        self.ids: list[int] = []
        self.text = ""
        self.ended = False
        self._returned = 0  # number of characters that `new` has returned

        # the text of ids[:_settled] is _head + _known, and _known is the text of ids[_first:_settled] alone
        self._first = self._settled = 0
        self._head = self._known = ""

    def extend(self, ids: Sequence[int]) -> bool:
        """Add tokens; the result is whether a stop has ended the text at or before the last of them.

        Once a stop has ended the text, further tokens are ignored.

        Raises:
            UserError: if the search for a stop expression takes too long.
        """
        if self.ended:
            return True
        counts = range(max(len(self.ids) + 1, self.min_tokens), len(self.ids) + len(ids) + 1)
        self.ids.extend(ids)
        self.text = self._decode(len(self.ids))
        count = self._first_stop(counts) if self.stops and counts else None
        if count is not None:
            text = self._decode(count)
            self.ids, self.text, self.ended = self.ids[:count], text[: self.stops.end(text)], True
        else:
            self._settle()
        return self.ended

    def new(self, ended: bool = False) -> str:
        """The text that became final since the last call.

        Args:
            ended: whether no more tokens follow, so that all text is final.

        Raises:
            UserError: if the search for a stop expression takes too long.
        """
        final = len(self.text)
        if not (ended or self.ended):
            final = self.stops.final_length(self.text)
            if len(self.ids) < self.min_tokens and (end := self.stops.end(self.text)) is not None:
                final = min(final, end)  # the stop may end the text once there are enough tokens
        first, self._returned = self._returned, max(self._returned, final)
        return self.text[first:final]

    def _decode(self, count: int) -> str:
        """The text of the first `count` ids, which include all settled ones."""
        window = self.tokenizer.decode(self.ids[self._first : count])
        if window.startswith(self._known):
            return self._head + window
        # a `tokenizers` decoder with byte fallback replaces a whole run of bytes when the next one makes it invalid
        return self.tokenizer.decode(self.ids[:count])

    def _settle(self) -> None:
        """Move the window to the last call's ids, unless their text is empty or may end in an incomplete character."""
        known = self.tokenizer.decode(self.ids[self._settled :])
        if known and not known.endswith(REPLACEMENT) and self.text.endswith(known):
            self._first, self._settled = self._settled, len(self.ids)
            self._head, self._known = self.text[: -len(known)], known

    def _first_stop(self, counts: range) -> int | None:
        """The first of these numbers of ids whose text has a stop."""
        ends = lambda count: self.stops.end(self._decode(count)) is not None
        if self.stops.may_unmatch:
            return next(filter(ends, counts), None)
        searched = len(self._head + self._known) if self._settled >= self.min_tokens else 0
        if self.stops.end(self.text, searched) is None:
            return None
        return counts[bisect_left(counts, True, hi=len(counts) - 1, key=ends)]
