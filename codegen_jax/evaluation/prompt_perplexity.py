"""How well a model predicts text segments given their context: the paper's "PPL" of prompts.

P: segments, B: rows per batch, T: tokens per row.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.inference.generator import Generator
from codegen_jax.progress import track
from codegen_jax.training.loss import perplexity

ROWS = 8  # per batch


class Segment(NamedTuple):
    """A text segment after its context, as token ids.

    Attributes:
        ids: the ids of the context and the segment.
        start: index of the segment's first id; at least 1, since the very first token has no context.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return len(self.ids) - self.start

    def fit(self, context: int, what: str) -> "Segment":
        """The segment with its context truncated from the left to at most `context` tokens in total.

        Raises:
            UserError: if the segment does not fit after one token of context; the message begins with `what`.
        """
        dropped = max(0, len(self.ids) - context)
        require(
            dropped < self.start,
            f"{what}: has {self.tokens} tokens, which do not fit in the model's context of {context} after one token "
            "of context; use a model with a longer context, or leave it out",
        )
        return Segment(self.ids[dropped:], self.start - dropped)


def encode(tokenizer: Tokenizer, text: str, what: str) -> tuple[int, ...]:
    """The ids of a text. Raises a `UserError` that begins with `what` if the text can't be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: not valid Unicode ({error.reason} at character {error.start})") from error
    return tuple(tokenizer.encode(text))


def segment_after(tokenizer: Tokenizer, context: str, text: str, what: str) -> Segment:
    """A text after its context. The two are encoded together, as in the prompt given to a model.

    The segment's tokens are those that begin at or after the text's first character; a token spanning both is context.

    Args:
        context: the text before it; not empty.
        what: the start of error messages, such as the problem's name.

    Raises:
        UserError: if the text has no tokens of its own, is not valid Unicode, or can't be decoded from its ids.
    """
    ids = encode(tokenizer, context + text, what)
    require(
        tokenizer.decode(ids).startswith(context),
        f"{what}: the model's tokenizer does not restore this text from its ids, so its first token is unknown",
    )
    # the first token that begins after the complete context
    start = bisect_left(range(len(ids)), True, key=lambda count: tokenizer.decode(ids[:count]).startswith(context))
    require(0 < start < len(ids), f"{what}: no token begins within the text; leave it out")
    return Segment(ids, start)


def log_probabilities(model: Generator, segments: Sequence[Segment]) -> np.ndarray:
    """The natural logarithm of the probability of each segment given its context, float64 [P].

    If the ids of one segment are a prefix of another's, the two share a row. So scoring a prompt costs nothing extra if
    a later prompt or a completion of it is also scored.

    >>> log_probabilities(model, [segment_after(model.tokenizer, "def f(x):", " return x", "f")]).shape
    (1,)
    """
    rows = list[tuple[tuple[int, ...], list[int]]]()  # ids, and the indices of the segments they contain
    # in reverse order, longer ids come right before the segments that are their prefixes
    for number in sorted(range(len(segments)), key=lambda number: segments[number].ids, reverse=True):
        ids = segments[number].ids
        if rows and rows[-1][0][: len(ids)] == ids:
            rows[-1][1].append(number)
        else:
            rows.append((ids, [number]))
    rows.sort(key=lambda row: len(row[0]))
    sums_P = np.zeros(len(segments))
    for first in track(range(0, len(rows), ROWS), "perplexity", "batch"):
        batch = rows[first : first + ROWS]
        tokens_BT = np.zeros((len(batch), len(batch[-1][0])), np.int32)
        for row_T, (ids, _) in zip(tokens_BT, batch):
            row_T[: len(ids)] = ids
        for logprobs_T, (_, numbers) in zip(model.logprobs(tokens_BT)[0], batch):
            for number in numbers:
                ids, start = segments[number]
                sums_P[number] = logprobs_T[start - 1 : len(ids) - 1].sum(dtype=np.float64)
    return sums_P


def perplexities(model: Generator, groups: Sequence[Sequence[Segment]]) -> list[float]:
    """exp(-(1/m) sum_i log P(segment i | its context)) per group of segments; m is its number of predicted tokens."""
    sums_P = iter(log_probabilities(model, [segment for segments in groups for segment in segments]).tolist())
    return [
        perplexity(-sum(next(sums_P) for _ in segments) / sum(segment.tokens for segment in segments))
        for segments in groups
    ]


@dataclass(frozen=True)
class Mean:
    """A mean of perplexities.

    Attributes:
        count: number of values.
        perplexity: the mean; None if there are no values.
        standard_error: sample standard deviation (n - 1) / sqrt(n); None for fewer than two values.
    """

    count: int
    perplexity: float | None
    standard_error: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Mean":
        values_N = np.array(list(values))
        N = len(values_N)
        error = float(values_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None
        return cls(N, float(values_N.mean()) if N else None, error)

    def __str__(self) -> str:
        if self.perplexity is None:
            return "none"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        return f"{self.perplexity:.3f}{error}"
