"""How well a model predicts pieces of text, each given what stands before it: the paper's "PPL" of prompts.

P: pieces, B: rows of a batch, T: tokens of a row.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.inference.generate import Generator
from codegen_jax.training.loss import perplexity

ROWS = 8  # at a time


class Piece(NamedTuple):
    """A piece of text behind its context, as ids.

    Attributes:
        ids: of both.
        start: where the piece begins in them; 1 at least, since nothing predicts the first token of all.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return len(self.ids) - self.start

    def fitted(self, context: int, what: str) -> "Piece":
        """The piece with its context cut from the left, so that all is of so many tokens at most.

        Raises:
            UserError: if the piece itself does not fit behind one token of context; the message begins with `what`.
        """
        dropped = max(0, len(self.ids) - context)
        require(
            dropped < self.start,
            f"{what}: {self.tokens} tokens, and one before them, exceed the model's context of {context}; take a model "
            "with a longer one, or leave this one out",
        )
        return Piece(self.ids[dropped:], self.start - dropped)


def encode(tokenizer: Tokenizer, text: str, what: str) -> tuple[int, ...]:
    """The ids of a text; `UserError`, which begins with `what`, for one that has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: not valid Unicode ({error.reason} at character {error.start})") from error
    return tuple(tokenizer.encode(text))


def piece_after(tokenizer: Tokenizer, context: str, text: str, what: str) -> Piece:
    """A text behind its context, the two encoded as one, which is how a model is given them.

    Its tokens are those that begin at or after its first character; a token that holds characters of both is context.

    Args:
        context: not empty.
        what: of the messages, such as the problem's name.

    Raises:
        UserError: for a text that has no tokens of its own, is not valid Unicode, or does not come back from its ids.
    """
    ids = encode(tokenizer, context + text, what)
    require(
        tokenizer.decode(ids).startswith(context),
        f"{what}: the model's tokenizer does not give its text back, so that none tells which tokens are whose",
    )
    # the first token that begins where the context is whole
    start = bisect_left(range(len(ids)), True, key=lambda count: tokenizer.decode(ids[:count]).startswith(context))
    require(0 < start < len(ids), f"{what}: no token begins in the text; leave this one out")
    return Piece(ids, start)


def log_probabilities(model: Generator, pieces: Sequence[Piece]) -> np.ndarray:
    """The natural logarithm of the probability of each piece given its context, float64 [P].

    A piece whose ids another one begins with is read off that one's row: the prompts of a history, and a prompt that
    many completions follow, cost nothing of their own.

    >>> log_probabilities(model, [piece_after(model.tokenizer, "def f(x):", " return x", "f")])
    """
    rows = list[tuple[tuple[int, ...], list[int]]]()  # ids, and the numbers of the pieces that they hold
    # sorted, the ids that begin with those of a piece come right behind it
    for number in sorted(range(len(pieces)), key=lambda number: pieces[number].ids, reverse=True):
        ids = pieces[number].ids
        if rows and rows[-1][0][: len(ids)] == ids:
            rows[-1][1].append(number)
        else:
            rows.append((ids, [number]))
    rows.sort(key=lambda row: len(row[0]))
    sums_P = np.zeros(len(pieces))
    for first in tqdm(range(0, len(rows), ROWS), unit="batch", disable=None):
        batch = rows[first : first + ROWS]
        tokens_BT = np.zeros((len(batch), len(batch[-1][0])), np.int32)
        for row_T, (ids, _) in zip(tokens_BT, batch):
            row_T[: len(ids)] = ids
        for logprobs_T, (_, numbers) in zip(model.logprobs(tokens_BT)[0], batch):
            for number in numbers:
                ids, start = pieces[number]
                sums_P[number] = logprobs_T[start - 1 : len(ids) - 1].sum(dtype=np.float64)
    return sums_P


def perplexities(model: Generator, groups: Sequence[Sequence[Piece]]) -> list[float]:
    """Of each group of pieces exp(-(1/m) sum_i log P(piece i | its context)), where m is how many tokens they have."""
    sums_P = iter(log_probabilities(model, [piece for pieces in groups for piece in pieces]).tolist())
    return [perplexity(-sum(next(sums_P) for _ in pieces) / sum(piece.tokens for piece in pieces)) for pieces in groups]


@dataclass(frozen=True)
class Mean:
    """A mean of perplexities.

    Attributes:
        count: of what it is the mean of.
        perplexity: the mean; None of nothing.
        standard_error: standard deviation (of a sample, n - 1) / sqrt(n); None below two.
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
