"""Show what the model saw at step N: the rows of a batch as text, with token and document boundaries."""

from collections.abc import Iterator, Sequence

import numpy as np

from codegen_jax.config import RunConfig
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.errors import require

SEPARATOR = "│"  # between two tokens


def show(config: RunConfig, step: int, row: int | None = None) -> Iterator[str]:
    """Yield the rows of a step, or one row, as text: a heading, then the tokens.

    Args:
        config: the run's config; only data, batch size and seed matter.
        step: step number as in the log, starting at 1.
        row: row of the batch, starting at 0; None means all rows.

    Raises:
        UserError: if the step or row does not exist, or the data can't be read.
    """
    require(step >= 1, f"step: must be at least 1, got {step}; steps are numbered as in the log")
    rows = range(config.training.batch_size)
    require(row is None or row in rows, f"row: must be between 0 and training.batch_size - 1 = {rows[-1]}, got {row}")
    sources, tokenizer = open_sources(config.data)
    order = make_order(config, sources)
    for number in rows if row is None else [row]:
        source, epoch, window = order.row(order.first_row(step - 1) + number)
        windows = sources[source].windows
        tokens, parts = windows[window], windows.parts(window)
        name = f"source {sources[source].name}, " if sources[source].name else ""
        ranges = [f"tokens {a} to {b - 1} of {windows.files.folder / windows.files.name(file)}" for file, a, b in parts]
        yield (
            f"== step {step}, row {number}: {name}epoch {epoch}, window {window} of {len(windows)}, {', '.join(ranges)}"
        )
        documents = [document for part in parts for document in windows.files.documents(*part)]
        yield render(tokens, tokenizer, documents)


def render(tokens: np.ndarray, tokenizer: Tokenizer, documents: Sequence[int]) -> str:
    """Tokens as text, separated by `SEPARATOR`; each eos is followed by a line with the next document's number.

    Tokens that share a character are shown together, since none of them is text on its own.
    """
    text, pending, numbers = f"-- document {documents[0]}\n", [], iter(documents[1:])
    for token in tokens.tolist():
        pending.append(token)
        piece = END_OF_TEXT if token == tokenizer.eos_id else tokenizer.decode(pending)
        if "\ufffd" in piece and len(pending) < 4:  # only part of a character's bytes so far
            continue
        text, pending = text + piece + SEPARATOR, []
        if token == tokenizer.eos_id:
            text += f"\n-- document {next(numbers, '')}\n"
    return text + tokenizer.decode(pending)
