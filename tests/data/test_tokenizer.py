"""Tokenizers: ids match the golden ones, texts round-trip, and invalid files are rejected."""

import json
import random
from pathlib import Path

import pytest

from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, WHITESPACE_TOKENS, BpeTokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.weights.tokenizer_files import tokenizer_files
from tests.data.foreign import sentencepiece
from tests.peers import tiny_bpe

GPT2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizer"


@pytest.fixture(scope="module")
def gpt2():
    """A function that loads GPT-2's vocabulary, with or without the whitespace tokens."""
    if not GPT2.exists():
        pytest.skip("GPT-2's vocabulary files are not next to this checkout")
    return lambda whitespace_tokens: load_tokenizer(GPT2, whitespace_tokens)


def test_multi_extends_nl_but_nl_does_not_extend_multi(gpt2):
    assert gpt2(True).extends(gpt2(False)) and not gpt2(False).extends(gpt2(True))


def test_a_vocabulary_extends_another_if_all_its_ids_mean_the_same(texts, tokenizer, tmp_path):
    plain = tiny_bpe(texts, 400)
    spaces = BpeTokenizer(plain.files()["tokenizer.json"].decode(), whitespace_tokens=True)
    assert plain.extends(plain) and spaces.extends(plain) and not plain.extends(spaces)
    for other in (tiny_bpe(texts[::3], 400), tiny_bpe(texts[::3], 900), tokenizer):
        assert not other.extends(plain) and not plain.extends(other)
    for name, content in tokenizer_files(tokenizer, 2048).items():  # the same ids, written for transformers
        (tmp_path / name).write_bytes(content)
    exported = load_tokenizer(tmp_path)
    assert exported.fingerprint == tokenizer.fingerprint
    assert exported.extends(tokenizer) and tokenizer.extends(exported)


def random_texts(count=300):
    rng = random.Random(0)
    alphabet = [
        "\u2581",
        "\0",
        "\r\n",
        "\t",
        "\t\t",
        " ",
        "    ",
        "\n",
        "é",
        "日本",
        "🙂",
        "\u200b",
        "def ",
        "x",
        "1",
        "<0x0A>",
    ]
    for _ in range(count):
        others = [chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(5)]
        yield "".join(rng.choices(alphabet + others, k=rng.randrange(20)))


def test_codegen_ids_match_the_golden_ones(gpt2):
    tokenizer = gpt2(True)
    for line in (GPT2 / "golden.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert tokenizer.encode(row["text"]) == row["ids"]
        assert tokenizer.decode(row["ids"]) == row["text"]


def test_nl_has_gpt2s_ids_and_multi_and_mono_have_38_more(gpt2):
    plain, extended = gpt2(False), gpt2(True)
    assert (plain.vocab_size, extended.vocab_size) == (50257, 50295)
    assert plain.eos_id == extended.eos_id == 50256
    assert plain.fingerprint != extended.fingerprint
    assert [extended.encode(text)[0] for text in (" " * 31 + "x", "  x", "\t" * 9, "\t\t")] == [
        50257,
        50286,
        50287,
        50294,
    ]


def test_sentencepiece_round_trips_any_text(tokenizer, texts):
    for text in [*random_texts(), *texts]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_encoding_adds_no_tokens(kind, tokenizer):
    used = tokenizer if kind == "sentencepiece" else tiny_bpe()
    assert used.encode("") == []
    assert used.encode_batch(["def f", "x"]) == [used.encode("def f"), used.encode("x")]
    assert used.eos_id not in used.encode("def f(x):")


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_a_saved_tokenizer_loads_unchanged(kind, tokenizer, tmp_path):
    used = tokenizer if kind == "sentencepiece" else tiny_bpe()
    used.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.fingerprint, again.vocab_size, again.eos_id) == (used.fingerprint, used.vocab_size, used.eos_id)
    assert again.encode("def f(x): return") == used.encode("def f(x): return")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_text('{"half": ')
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer.json, tokenizer.model or vocab.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_eos_is_rejected(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"no token to end documents with: neither <\|endoftext\|>"):
        load_tokenizer(tmp_path)


def test_whitespace_tokens_in_added_tokens_json_are_read(tmp_path):
    """Slow tokenizers kept them next to the vocabulary, in added_tokens.json."""
    plain = tiny_bpe()
    parts = json.loads(plain.files()["tokenizer.json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in parts["merges"]))
    ids = {token: plain.vocab_size + number for number, token in enumerate(WHITESPACE_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(dict(sorted(ids.items()))))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == plain.vocab_size + 38
    for token, id in ids.items():
        assert tokenizer.encode(f"f{token}f")[1] == id
    ids["\t"] = 999
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match=r"added_tokens.json"):
        load_tokenizer(tmp_path)


def random_completions(count=300):
    rng = random.Random(0)
    pieces = [
        "def f(x):\n",
        "    return 1\n",
        "print(f(1))\n",
        "x = 'def'\n",
        "\n",
        "\n\n",
        "# note\n",
        "'''\n",
        '"""doc"""\n',
    ]
    for _ in range(count):
        yield "".join(rng.choices([*pieces, "<|endoftext|>", "  print(2)\n"], k=rng.randrange(12)))


def test_truncation_matches_transformers(tmp_path):
    from transformers import AutoTokenizer

    ours = tiny_bpe()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CodeGenTokenizer"}')
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in random_completions():
        ids = ours.encode(text)
        for patterns in (["\n\n^#", "^'''", "\n\n\n"], list(TRUNCATE_BEFORE)):
            assert ours.decode(ids, patterns) == theirs.decode(ids, truncate_before_pattern=patterns)


def test_an_invalid_regular_expression_is_named(tokenizer):
    with pytest.raises(UserError, match=r"'\(' is not a regular expression"):
        tokenizer.decode([], ["("])


def test_bpe_dropout_is_disabled():
    parts = json.loads(tiny_bpe().files()["tokenizer.json"])
    parts["model"]["dropout"] = 0.5
    tokenizer = BpeTokenizer(json.dumps(parts))
    assert tokenizer.encode("def f(x): return x" * 20) == tiny_bpe().encode("def f(x): return x" * 20)
    assert tokenizer.fingerprint == tiny_bpe().fingerprint


def test_special_tokens_become_ids_or_stay_text_as_requested():
    tokenizer = tiny_bpe()
    text = "def<|endoftext|>f"
    as_token, as_text = (tokenizer.encode_batch([text], special_tokens=choice)[0] for choice in (True, False))
    assert as_token == [*tokenizer.encode("def"), tokenizer.eos_id, *tokenizer.encode("f")] == tokenizer.encode(text)
    assert tokenizer.eos_id not in as_text and tokenizer.decode(as_text) == text


def test_eos_is_text_in_documents_even_if_its_file_does_not_mark_it_special():
    parts = json.loads(tiny_bpe().files()["tokenizer.json"])
    for token in parts["added_tokens"]:
        token["special"] = False
    tokenizer = BpeTokenizer(json.dumps(parts))
    assert tokenizer.eos_id not in tokenizer.encode_batch(["x<|endoftext|>y"], special_tokens=False)[0]


def test_without_byte_fallback_sentencepiece_reads_u2581_as_a_space(texts):
    tokenizer = sentencepiece(texts[::4])
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"
