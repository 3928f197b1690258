"""Decide whether two tokenizers are the same: their ids stand for the same pieces, and they encode texts alike.

Comparing files would not work: the same vocabulary may be stored as tokenizer.json, as vocab.json and merges.txt, or
as a sentencepiece model and its export by `convert --to hf`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

# Texts that distinguish many kinds of pre-tokenizers, normalizers and added tokens. Changing them changes every
# fingerprint, so existing token files would be rejected.
PROBES = (
    "def f(x):\n    return x + 1\n\n\n\tif y:\n\t\tpass\n",
    "    indented\n  twice  \n" + " " * 40 + "\n",
    "a\r\nb\rc\n\n\r\n",
    "x = {'a': 1}  # 0123456789 1,000.50 !\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\n",
    "Upper and lower: ABC abc ABc, don't, CAN'T, can't . , !\n",
    "e\u0301 \u00e9 \u212b \uff21 \ufb01 \u00bd",  # NFC and NFKC change these
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441 \u0639\u0631\u0628\u064a",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ufeffx\u00a0\u2028\u0085\x0c\x0b\u200b\x00\x01\x7f",
    " leading, trailing ",
    "<|endoftext|> <s> </s> <unk> [UNK] [CLS] <pad> <0x0A> <|im_start|>",
)


def identity(
    pieces: Sequence[str],
    rules: Sequence[Sequence[str | float]],
    eos_id: int,
    encode: Callable[[list[str]], list[list[int]]],
) -> str:
    """A fingerprint of 16 hex digits, equal for tokenizers that encode documents alike.

    Args:
        pieces: the piece of each id, as written in the tokenizer's files.
        rules: the rules that form pieces: the merges in order, or the pieces with their scores for a unigram model.
        eos_id: the id that ends documents.
        encode: a function that encodes documents to ids.
    """
    plain = lambda piece: piece.replace("\u2581", " ") if isinstance(piece, str) else piece  # sentencepiece's space
    pieces, rules = [plain(piece) for piece in pieces], [[plain(part) for part in rule] for rule in rules]
    derived = {"".join(part for part in rule if isinstance(part, str)) for rule in rules}
    # added tokens are matched before pre-tokenization, perhaps including surrounding spaces; only encoding reveals how
    added = [piece for piece in pieces if piece not in derived]
    probes = [*PROBES, *(f"a{piece}b {piece} c\n{piece}" for piece in added)]
    digest = hashlib.sha256()
    for part in (pieces, rules, eos_id, encode(probes)):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:16]
