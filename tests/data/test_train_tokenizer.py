"""Training a tokenizer on shards."""

import pytest

from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.data.train_tokenizer import train_sentencepiece, train_tokenizer
from codegen_jax.errors import UserError
from tests.conftest import write_shard


def test_a_tokenizer_is_trained_on_shards_and_saved(tmp_path, texts):
    shard = write_shard(tmp_path / "0.jsonl.gz", texts)
    trained = train_tokenizer([shard], str(tmp_path / "out"), vocab_size=400, max_megabytes=1)
    assert load_tokenizer(tmp_path / "out").fingerprint == trained.fingerprint
    assert trained.vocab_size == 400


def test_only_the_first_megabytes_are_read(tmp_path):
    shard = write_shard(tmp_path / "0.jsonl", ["abab " * 1000, "zq zq " * 1000])
    one = train_tokenizer([shard], str(tmp_path / "one"), vocab_size=266, max_megabytes=0.001)
    both = train_tokenizer([shard], str(tmp_path / "both"), vocab_size=266, max_megabytes=1)
    assert len(one.encode("zq")) > len(both.encode("zq"))


@pytest.mark.parametrize("megabytes", [0, -1.5])
def test_max_megabytes_must_be_positive(tmp_path, megabytes):
    with pytest.raises(UserError, match=f"^max_megabytes: must be positive, got {megabytes}"):
        train_tokenizer([], str(tmp_path / "out"), vocab_size=400, max_megabytes=megabytes)


def test_every_character_of_a_long_document_is_used():
    text = "".join(chr(0x4E00 + number) for number in range(2500))
    tokenizer = train_sentencepiece([text], vocab_size=2800)
    assert all(len(tokenizer.encode(character)) == 1 for character in text[:-1])  # the rarest one is left out


def test_indentation_is_one_id(tokenizer):
    assert len(tokenizer.encode("    ")) == len(tokenizer.encode("        ")) == 1


def test_a_nonempty_folder_is_rejected(tmp_path, texts):
    shard = write_shard(tmp_path / "0.jsonl", texts)
    with pytest.raises(UserError, match="not empty"):
        train_tokenizer([shard], str(tmp_path), vocab_size=400, max_megabytes=1)


@pytest.mark.parametrize("vocab_size", [10, 100_000])
def test_an_impossible_vocabulary_size_is_named(vocab_size):
    with pytest.raises(UserError, match=f"vocab_size: sentencepiece can't train {vocab_size} ids"):
        train_sentencepiece(["def f(x): return x"], vocab_size)
