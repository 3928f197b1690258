"""Fill-in-the-middle: documents whose middle moves to the end (Bavarian et al. 2022, arXiv 2207.14255).

A document is cut at two random characters into prefix, middle and suffix, which are joined by special tokens as

    PSM: <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    SPM: <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle    (SPMv2 in the paper's appendix)

so that a model learns to write a middle when it is given the rest. The parts are encoded separately, as when a model is
asked for a middle. The special tokens take the ids after the vocabulary, which are unused rows of CodeGen's embedding.
"""

import json

import numpy as np

from codegen_jax.data.parts import Part
from codegen_jax.data.tokenizer import Tokenizer
from codegen_jax.data.tokenizer_metadata import LAYOUT_FILE
from codegen_jax.errors import UserError, require

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
TOKENS = (PREFIX, SUFFIX, MIDDLE)
MODES = ("psm", "spm", "mixed")
# what precedes a middle; "prefix" and "suffix" stand for the texts
LAYOUTS = {"psm": [PREFIX, "prefix", SUFFIX, "suffix", MIDDLE], "spm": [PREFIX, SUFFIX, "suffix", MIDDLE, "prefix"]}


def with_infill(tokenizer: Tokenizer, mode: str) -> Tokenizer:
    """The tokenizer with the three special tokens, and the layout of prompts for a model trained in this mode."""
    layout = LAYOUTS["psm" if mode == "mixed" else mode]
    extended = tokenizer.with_special_tokens(TOKENS)
    return extended.with_file(LAYOUT_FILE, json.dumps(layout).encode())


def infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """The prompt that asks for the text between a prefix and a suffix, as ids.

    Its layout comes from the tokenizer's infill.json: a list of special tokens and the words "prefix" and "suffix".
    Another family of models needs another such file.

    Raises:
        UserError: if the tokenizer has no such file, or it has other content.
    """
    if LAYOUT_FILE not in tokenizer.metadata:
        raise UserError(
            "suffix: this model was not trained to fill in text before a suffix (its tokenizer has no "
            f"{LAYOUT_FILE}); fine-tune one on data made with codegen-jax prepare --fim-rate"
        )
    texts = {"prefix": prefix, "suffix": suffix}
    try:
        layout = json.loads(tokenizer.metadata[LAYOUT_FILE])
    except ValueError as error:
        raise UserError(f"suffix: the tokenizer's {LAYOUT_FILE} is not JSON ({error})") from error
    is_layout = isinstance(layout, list) and all(isinstance(item, str) for item in layout)
    require(is_layout, f"suffix: the tokenizer's {LAYOUT_FILE} must be a list of strings, got {layout}")
    ids = []
    for item in layout:
        ids += tokenizer.encode(texts[item]) if item in texts else [tokenizer.id_of(item)]
    return ids


def split(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """Cut a text at two random places, which may coincide: prefix, middle, suffix."""
    first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
    return text[:first], text[first:second], text[second:]


def rearranged(text: str, mode: str, random: np.random.Generator) -> list[Part]:
    """A document as the parts of a layout, and its middle; in mode "mixed", either layout is equally likely."""
    either = ("psm", "spm")[int(random.integers(2))]
    layout = LAYOUTS[either if mode == "mixed" else mode]
    prefix, middle, suffix = split(text, random)
    texts = {"prefix": prefix, "suffix": suffix}
    parts = [Part(texts[item]) if item in texts else Part(item, special=True) for item in layout]
    return [*parts, Part(middle)]
