"""When two tokenizers are the same: their ids stand for the same pieces, and texts get the same ids.

Files don't tell: one vocabulary is a tokenizer.json, or vocab.json and merges.txt, or a sentencepiece model and what
`convert --to hf` makes of it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

# What pre-tokenizers, normalizers and added tokens of many kinds would treat apart. A change of it changes every
# fingerprint, and token files would be refused.
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
    """16 hex digits, equal for tokenizers that encode documents alike.

    Args:
        pieces: of each id, as the tokenizer's files write them.
        rules: by which pieces come to be: the merges in their order, or pieces with their scores in a unigram model.
        eos_id: that ends documents.
        encode: the ids of documents.
    """
    plain = lambda piece: piece.replace("\u2581", " ") if isinstance(piece, str) else piece  # as sentencepiece has it
    pieces, rules = [plain(piece) for piece in pieces], [[plain(part) for part in rule] for rule in rules]
    derived = {"".join(part for part in rule if isinstance(part, str)) for rule in rules}
    # an added token is found before words are made, maybe with the spaces around it: nothing but its use shows how
    others = [piece for piece in pieces if piece not in derived]
    probes = [*PROBES, *(f"a{piece}b {piece} c\n{piece}" for piece in others)]
    digest = hashlib.sha256()
    for part in (pieces, rules, eos_id, encode(probes)):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:16]
