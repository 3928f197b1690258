"""Encoding a text in pieces gives the ids of the whole text, whatever the tokenizer."""

import pytest
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from codegen_jax.data import cut
from codegen_jax.data.cut import Cutter
from codegen_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer
from tests.data.foreign import FOREIGN

CUT = {  # minimum number of pieces for texts with whitespace
    "GPT-2's rules": 10,
    "whitespace tokens": 10,
    "Llama 3's rules": 10,
    "digits apart": 10,
    "lower case": 10,
    "NFKC": 10,
}
WHOLE = {"ends stripped", "Llama's sentencepiece"}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(cut, "PIECE", 200)
    monkeypatch.setattr(cut, "CONTEXT", 100)


@pytest.fixture(scope="module")
def samples(texts):
    code = "\n".join(texts[:3])[:6000]
    return {
        "LF": code,
        "CRLF": code.replace("\n", "\r\n"),
        "CR": code.replace("\n", "\r"),
        "one line": code.replace("\n", " "),
        "tabs": code.replace("    ", "\t"),
        "line ends in a row": code.replace("\n", "\n\n\n"),
        "spaces in a row": code.replace(" ", "   "),
        "semicolons": code.replace("\n", ";\n"),
        "not ASCII": code.replace("e", "é").replace("s", "日 "),
        "special": code.replace("return", "<|endoftext|>"),
        "no whitespace": "".join(code.split()),
    }


@pytest.mark.parametrize("name", FOREIGN)
def test_the_ids_of_pieces_are_those_of_the_whole(name, texts, samples):
    tokenizer = FOREIGN[name](texts[::4])
    cutter, counts = Cutter(tokenizer), {}
    for kind, text in samples.items():
        pieces = list(cutter.pieces(text))
        counts[kind] = len(pieces)
        assert "".join(pieces) == text
        whole, *parts = tokenizer.encode_batch([text, *pieces], special_tokens=False)
        assert [id for ids in parts for id in ids] == whole, kind
    assert counts["no whitespace"] == 1
    if name in WHOLE:
        assert set(counts.values()) == {1}
    for kind in ("LF", "CRLF", "CR", "one line", "tabs"):
        assert counts[kind] >= CUT.get(name, 1), kind


def test_a_text_whose_tokens_hang_on_its_start_is_not_cut():
    """Pairs of " x" become one id, counted from the start, which can't be seen from the text around a position."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {piece: id for id, piece in enumerate(["x", "\u0120", "\u0120x", "\u0120x\u0120x", END_OF_TEXT])}
    tokenizer = hf.Tokenizer(models.BPE(vocab, [("\u0120", "x"), ("\u0120x", "\u0120x")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_only, decoders.ByteLevel()
    text = "xx" + " x" * 500
    assert list(Cutter(BpeTokenizer(tokenizer.to_str())).pieces(text)) == [text]


def test_our_tokenizer_is_cut_at_every_kind_of_line_end(tokenizer, samples):
    for kind in ("LF", "CRLF", "CR", "one line", "tabs"):
        pieces = list(Cutter(tokenizer).pieces(samples[kind]))
        assert len(pieces) > 10
        whole, *parts = tokenizer.encode_batch([samples[kind], *pieces])
        assert [id for ids in parts for id in ids] == whole


def test_pieces_have_the_size_that_they_should(tokenizer, samples):
    pieces = list(Cutter(tokenizer).pieces(samples["LF"]))
    assert all(200 <= len(piece) < 400 for piece in pieces[:-1]) and len(pieces[-1]) <= 400
