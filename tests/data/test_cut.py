"""Encoding a text in chunks gives the ids of the whole text, with any tokenizer."""

import pytest
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from codegen_jax.data import cut
from codegen_jax.data.cut import Cutter
from codegen_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer
from tests.data.foreign import FOREIGN

MIN_CHUNKS = {  # for texts with whitespace; 1 for other tokenizers
    "GPT-2's rules": 10,
    "whitespace tokens": 10,
    "Llama 3's rules": 10,
    "single digits": 10,
    "lowercase": 10,
    "NFKC": 10,
}
NEVER_CUT = {"stripped ends", "Llama's sentencepiece"}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(cut, "CHUNK_LENGTH", 200)
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
        "blank lines": code.replace("\n", "\n\n\n"),
        "wide spaces": code.replace(" ", "   "),
        "semicolons": code.replace("\n", ";\n"),
        "non-ASCII": code.replace("e", "é").replace("s", "日 "),
        "special tokens": code.replace("return", "<|endoftext|>"),
        "no whitespace": "".join(code.split()),
    }


@pytest.mark.parametrize("name", FOREIGN)
def test_chunks_have_the_ids_of_the_whole_text(name, texts, samples):
    tokenizer = FOREIGN[name](texts[::4])
    cutter, counts = Cutter(tokenizer), {}
    for kind, text in samples.items():
        chunks = list(cutter.chunks(text))
        counts[kind] = len(chunks)
        assert "".join(chunks) == text
        whole, *parts = tokenizer.encode_batch([text, *chunks], special_tokens=False)
        assert [id for ids in parts for id in ids] == whole, kind
    assert counts["no whitespace"] == 1
    if name in NEVER_CUT:
        assert set(counts.values()) == {1}
    for kind in ("LF", "CRLF", "CR", "one line", "tabs"):
        assert counts[kind] >= MIN_CHUNKS.get(name, 1), kind


def test_a_text_is_not_cut_if_its_tokens_depend_on_its_start():
    """Pairs of " x" become one id, counted from the start, which can't be seen from the text around a position."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {piece: id for id, piece in enumerate(["x", "\u0120", "\u0120x", "\u0120x\u0120x", END_OF_TEXT])}
    tokenizer = hf.Tokenizer(models.BPE(vocab, [("\u0120", "x"), ("\u0120x", "\u0120x")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_only, decoders.ByteLevel()
    text = "xx" + " x" * 500
    assert list(Cutter(BpeTokenizer(tokenizer.to_str())).chunks(text)) == [text]


def test_our_tokenizer_allows_cuts_at_every_kind_of_line_end(tokenizer, samples):
    for kind in ("LF", "CRLF", "CR", "one line", "tabs"):
        chunks = list(Cutter(tokenizer).chunks(samples[kind]))
        assert len(chunks) > 10
        whole, *parts = tokenizer.encode_batch([samples[kind], *chunks])
        assert [id for ids in parts for id in ids] == whole


def test_chunks_have_about_the_target_length(tokenizer, samples):
    chunks = list(Cutter(tokenizer).chunks(samples["LF"]))
    assert all(200 <= len(chunk) < 400 for chunk in chunks[:-1]) and len(chunks[-1]) <= 400
