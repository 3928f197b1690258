"""The parts of a document: text or special tokens, each with or without loss."""

from collections.abc import Sequence
from typing import NamedTuple

from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.errors import UserError


class Part(NamedTuple):
    """A part of a document, encoded on its own.

    Attributes:
        text: text, or the name of one special token.
        trained: whether the part belongs to a completion, whose tokens the loss is taken on.
        special: whether `text` names a special token; <|endoftext|> stands for the tokenizer's eos.
    """

    text: str
    trained: bool = True
    special: bool = False


END = Part(END_OF_TEXT, special=True)


def encode_parts(tokenizer: Tokenizer, parts: Sequence[Part], special_tokens: bool = False) -> list[list[int]]:
    """The ids of each part; `special_tokens` is that of `Tokenizer.encode_batch`, for parts that are text."""
    encoded = iter(tokenizer.encode_batch([part.text for part in parts if not part.special], special_tokens))
    return [[tokenizer.id_of(part.text)] if part.special else next(encoded) for part in parts]


def check_separate_encoding(tokenizer: Tokenizer) -> None:
    """Check that texts encoded one by one decode to the whole text.

    Raises:
        UserError: if the tokenizer adds or removes spaces where a text begins.
    """
    texts = ["def f(x):\n", "    return x", " + 1\n"]
    ids = [id for piece in tokenizer.encode_batch(texts, special_tokens=False) for id in piece]
    if (found := tokenizer.decode(ids)) != "".join(texts):
        raise UserError(
            f"tokenizer: it changes spaces at the beginning of a text ({''.join(texts)!r} becomes {found!r}), so the "
            "parts of an example can't be encoded one by one; use a tokenizer that keeps text as it is, such as GPT-2's"
        )
