"""The parts of a document: text or special tokens, each with or without loss."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer


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


def text_of(parts: Iterable[Part]) -> str:
    """The text of a document without its special tokens."""
    return "".join(part.text for part in parts if not part.special)


def encode_parts(tokenizer: Tokenizer, parts: Sequence[Part], special_tokens: bool = False) -> list[list[int]]:
    """The ids of each part; `special_tokens` is that of `Tokenizer.encode_batch`, for parts that are text."""
    encoded = iter(tokenizer.encode_batch([part.text for part in parts if not part.special], special_tokens))
    return [[tokenizer.id_of(part.text)] if part.special else next(encoded) for part in parts]
