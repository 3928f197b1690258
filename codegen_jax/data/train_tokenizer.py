"""Train a sentencepiece tokenizer for code on raw shards."""

import io
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from codegen_jax.data.formats import Text
from codegen_jax.data.inputs import Inputs, list_shards
from codegen_jax.data.shards import Skipped, read_documents
from codegen_jax.data.tokenizer import END_OF_TEXT, SentencePieceTokenizer
from codegen_jax.errors import UserError, require
from codegen_jax.progress import Progress

log = logging.getLogger(__name__)

LONG_BYTES, LONG_SECONDS = 2e6, 5.0  # training on more text, or for longer, is logged


def train_tokenizer(
    inputs: list[str], output: str, vocab_size: int, max_megabytes: float, text_field: str = "text"
) -> SentencePieceTokenizer:
    """Train on the first documents of the shards and save the tokenizer to a new folder.

    Args:
        inputs: see `list_shards`.
        output: a new or empty folder.
        vocab_size: number of ids.
        max_megabytes: how much text to read, in units of 1e6 UTF-8 bytes.
        text_field: the field of each line or row that contains the document.

    Raises:
        UserError: if the folder is not empty, or the shards can't be read or contain too little text for vocab_size.
    """
    require(max_megabytes > 0, f"max_megabytes: must be positive, got {max_megabytes}")
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output: {output}: not empty; choose another folder")
    found = list_shards(inputs)
    log.info(f"{output}: {found}")
    began = time.perf_counter()
    tokenizer = train_sentencepiece(_first_texts(found, max_megabytes * 1e6, text_field), vocab_size)
    if (seconds := time.perf_counter() - began) > LONG_SECONDS:
        log.info(f"read and trained in {seconds:.0f} s")
    tokenizer.save(folder)
    return tokenizer


def _first_texts(inputs: Inputs, most_bytes: float, text_field: str) -> Iterator[str]:
    """Yield the first documents with a progress bar, then log the start of training, which has no progress bar."""
    read = 0
    with Progress("reading", most_bytes, "B") as progress:
        for text, fraction in _texts(inputs, text_field):
            yield text
            read += len(text.encode())
            # the total is an estimate, since the rest of the shards may compress differently
            progress.move_to(read, min(most_bytes, read / fraction) if fraction else most_bytes)
            if read >= most_bytes:
                break
        progress.move_to(read, read)
    if read > LONG_BYTES:
        log.info(f"training sentencepiece on {read / 1e6:,.1f} MB")


def _texts(inputs: Inputs, text_field: str) -> Iterator[tuple[str, float]]:
    """Yield all documents with the fraction of the inputs that has been read; 0 if it is unknown."""
    finished, fraction = 0, 0.0

    def note(found: float) -> None:
        nonlocal fraction
        fraction = min(1, found)

    for shard, size in zip(inputs.shards, inputs.sizes, strict=True):
        for document in read_documents(shard, Skipped(), Text(text_field), note):
            yield document.text, (finished + size * fraction) / max(1, inputs.nbytes)
        finished, fraction = finished + size, 0.0


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train a BPE sentencepiece model for code: no normalization, whitespace preserved, byte fallback.

    Args:
        texts: documents; a few tens of MB are enough.
        vocab_size: number of ids, at least about 300: 256 bytes, the characters that occur, and merges.

    Raises:
        UserError: if the texts do not yield that many ids.
    """
    model = io.BytesIO()
    # the trainer drops sentences of more than 4,192 bytes, so documents are split into chunks of 1,000 characters
    chunks = (text[i : i + 1000] for text in texts for i in range(0, len(text), 1000))
    try:
        SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=chunks,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"vocab_size: sentencepiece can't train {vocab_size} ids on these texts ({error})") from error
    return SentencePieceTokenizer(model.getvalue())
