"""Check that a tokenizer preserves difficult texts; a model trained on altered text would learn to reproduce it."""

import logging

from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.errors import UserError, listed, require

log = logging.getLogger(__name__)

# code that every tokenizer must round-trip, except for a leading space
CODE = (
    "def f(x):\n    return x + 1\n\n\n\tif y:\n\t\tpass\n",
    "    indented\n  twice  \n",
    "a\r\nb\r\n",
    "x = {'a': 1}  # 0123456789 !\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\n",
    "Upper and lower: ABC abc, don't, can't . , !\n",
)
# text that is rare in code; changes to it may be acceptable
RARE = (
    "a\u2581b",  # sentencepiece's symbol for a space
    "e\u0301 \u00e9 \u212b \uff21 \ufb01 \u00bd",  # NFC and NFKC change these
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441 \u0639\u0631\u0628\u064a",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ufeffx\u00a0\u2028\u0085\x0c\x0b\u200b",
    "\x00\x01\x7f",
    "a\rb",
    f"x = '{END_OF_TEXT}' <s> </s> <unk> [UNK] [CLS] <pad> <0x0A>",
)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Encode and decode difficult texts as documents; warn if rare text changes.

    Raises:
        UserError: if code changes, there is no end-of-document id, or a text contains that id.
    """
    require(
        tokenizer.eos_id >= 0,
        "tokenizer: the sentencepiece model has no eos piece to end documents with; train it with an eos_id, or use "
        "codegen-jax tokenizer train",
    )
    changed = []
    for text in (*CODE, *RARE):
        (ids,) = tokenizer.encode_batch([text], special_tokens=False)
        if tokenizer.eos_id in ids:
            raise UserError(
                f"tokenizer: encodes {text!r} with the id {tokenizer.eos_id}, which must only end documents"
            )
        decoded = tokenizer.decode(ids)
        if decoded == text:
            continue
        if text in CODE and decoded.removeprefix(" ") != text.removeprefix(" "):
            raise UserError(
                f"tokenizer: does not preserve code: {text!r} is decoded as {decoded!r}; choose one that preserves "
                "every character, such as GPT-2's or one from codegen-jax tokenizer train"
            )
        changed.append(f"{text!r} is decoded as {decoded!r}")
    if changed:
        log.warning(f"the tokenizer changes text, and the model will learn the changed text: {listed(changed)}")
