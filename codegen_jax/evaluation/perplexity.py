"""How well a model predicts text: its loss on token files, for unquantized and int8 models."""

from dataclasses import dataclass

import numpy as np

from codegen_jax.data.packing import Examples
from codegen_jax.data.rows import ids_of, targets_of
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.errors import require
from codegen_jax.inference.generator import Generator
from codegen_jax.progress import track
from codegen_jax.training.loss import perplexity

ROWS = 8  # per batch


@dataclass(frozen=True)
class Perplexity:
    """A model's loss on text.

    Attributes:
        tokens: number of tokens predicted.
        loss: nats per token.
        perplexity: exp(loss).
        bits_per_byte: loss in bits per byte of text, which is comparable between tokenizers.
    """

    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens: loss {self.loss:.4f} nats per token, perplexity {self.perplexity:.3f}, "
            f"{self.bits_per_byte:.4f} bits per byte"
        )


def measure_perplexity(
    model: Generator, tokens: str, sequence_length: int | None = None, max_windows: int | None = None
) -> Perplexity:
    """The loss over independent rows of sequence_length + 1 tokens, as in validation during training.

    If the token files hold examples, each has a row of its own, of any length, and only tokens that are trained count.

    Raises:
        UserError: if the token files are missing, damaged or from another tokenizer, or a value is out of range.
    """
    length = sequence_length
    require(
        length is None or 0 < length < model.config.n_positions,
        f"sequence_length: must be positive and below the model's context of {model.config.n_positions}, got {length}",
    )
    require(max_windows is None or max_windows > 0, f"max_windows: must be positive, got {max_windows}")
    files = TokenFiles(tokens)
    require(
        files.made_with(model.tokenizer),
        f"{tokens}: made with tokenizer {files.manifest.tokenizer}, but the model's is {model.tokenizer.fingerprint}; "
        "prepare the text with the model's tokenizer",
    )
    if files.manifest.has_examples:
        require(length is None, f"sequence_length: not for {tokens}, whose examples have rows of their own")
        rows = Examples(files, model.config.n_positions, packed=False)  # an example's last token is only a target
    else:
        rows = Windows(files, length or model.config.n_positions - 1)
    count = min(len(rows), max_windows or len(rows))
    total, predicted = 0.0, 0
    for first in track(range(0, count, ROWS), "perplexity", "batch"):
        numbers = range(first, min(first + ROWS, count))
        width = max(sum(stop - start for _, start, stop in rows.spans(number)) for number in numbers)
        batch = np.stack([rows[number][:width] for number in numbers])
        is_target = targets_of(batch)[:, 1:] >= 0
        total -= model.logprobs(ids_of(batch))[0].sum(dtype=np.float64, where=is_target)
        predicted += int(is_target.sum())
    loss = total / predicted
    return Perplexity(predicted, loss, perplexity(loss), files.manifest.bits_per_byte(loss))
