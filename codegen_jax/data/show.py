"""Show what the model saw at step N: the rows of a batch as text, with token and document boundaries."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from codegen_jax.config import RunConfig
from codegen_jax.data.rows import ids_of, starts_of, targets_of
from codegen_jax.data.sources import make_order, open_sources
from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.errors import require

NEW_LINE = "\n"
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
    last = config.training.batch_size - 1
    require(row is None or 0 <= row <= last, f"row: must be between 0 and training.batch_size - 1 = {last}, got {row}")
    sources, tokenizer = open_sources(replace(config.data, document_mask=True))  # rows then mark where documents start
    order = make_order(config, sources)
    for number in range(last + 1) if row is None else [row]:
        source, epoch, window = order.row(order.first_row(step - 1) + number)
        rows = sources[source].rows
        tokens, spans = rows[window], rows.spans(window)
        padding = len(tokens) - sum(stop - start for _, start, stop in spans)
        name = f"source {sources[source].name}, " if sources[source].name else ""
        ranges = [f"tokens {a} to {b - 1} of {rows.files.folder / rows.files.name(file)}" for file, a, b in spans]
        yield (
            f"== step {step}, row {number}: {name}epoch {epoch}, window {window} of {len(rows)}, {', '.join(ranges)}"
        )
        documents = [document for span in spans for document in rows.files.documents(*span)]
        text = render(tokens[: len(tokens) - padding], tokenizer, documents)
        yield text + (f"\n-- padding: {padding} tokens" if padding else "")


def render(row: np.ndarray, tokenizer: Tokenizer, documents: Sequence[int]) -> str:
    """Tokens as text, separated by `SEPARATOR`, with a line where a document starts and where training starts or ends.

    Tokens that share a character are shown together, since none of them is text on its own.

    Args:
        row: int32, as in rows.py, without padding.
        tokenizer: the tokenizer.
        documents: the number of the document at the start of the row, and of each one that starts later.
    """
    text, pending, numbers, was_trained = "", [], iter(documents), True
    starts, trained = starts_of(row), targets_of(row) >= 0
    for position, token in enumerate(ids_of(row).tolist()):
        if position == 0 or starts[position]:
            text += f"{NEW_LINE if text else ''}-- document {next(numbers, '')}\n"
        if trained[position] != was_trained:
            was_trained = trained[position]
            text += f"{'' if text.endswith(NEW_LINE) else NEW_LINE}-- {'trained' if was_trained else 'not trained'}\n"
        pending.append(token)
        piece = END_OF_TEXT if token == tokenizer.eos_id else tokenizer.decode(pending)
        if "\ufffd" in piece and len(pending) < 4:  # only part of a character's bytes so far
            continue
        text, pending = text + piece + SEPARATOR, []
    return text + tokenizer.decode(pending)
