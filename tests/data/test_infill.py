"""Documents rearranged for fill-in-the-middle lose nothing, and prompts ask as in training."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.data.infill import MIDDLE, PREFIX, SUFFIX, TOKENS, infill_prompt, rearranged, with_infill
from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from tests.conftest import write_shard
from tests.peers import tiny_bpe


@settings(deadline=None, derandomize=True, database=None)
@given(st.text(max_size=50), st.sampled_from(["psm", "spm", "mixed"]), st.integers(0, 2**32 - 1))
def test_the_parts_rejoin_to_the_document(text, mode, seed):
    parts = rearranged(text, mode, np.random.default_rng(seed))
    names = [part.text for part in parts if part.special]
    assert names == [PREFIX, SUFFIX, MIDDLE] and all(part.trained for part in parts)
    if parts[1].special:
        _, _, suffix, _, prefix, middle = (part.text for part in parts)
        assert mode != "psm"
    else:
        _, prefix, _, suffix, _, middle = (part.text for part in parts)
        assert mode != "spm"
    assert prefix + middle + suffix == text


def reference(texts, tokenizer, seed, rate, mode):
    """The ids of one shard's documents, after Bavarian et al. 2022."""
    pre, suf, mid = (tokenizer.id_of(token) for token in TOKENS)
    encode = lambda text: tokenizer.encode_batch([text], special_tokens=False)[0]
    for number, text in enumerate(texts):
        rng = np.random.default_rng([seed, 0, number])
        if rng.random() >= rate:
            yield (*encode(text), tokenizer.eos_id)
            continue
        spm = rng.integers(2) == 1 if mode == "mixed" else [rng.integers(2), mode == "spm"][1]
        cuts = np.sort(rng.integers(0, len(text) + 1, size=2))
        prefix, middle, suffix = (encode(t) for t in (text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]))
        if spm:
            yield (pre, suf, *suffix, mid, *prefix, *middle, tokenizer.eos_id)
        else:
            yield (pre, *prefix, suf, *suffix, mid, *middle, tokenizer.eos_id)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("rate", "mode"), [(0.5, "mixed"), (1.0, "spm"), (0.9, "psm")])
def test_prepared_files_hold_what_a_plain_implementation_gives(tmp_path, texts, tokenizer, rate, mode, pack):
    texts = [text[:300] for text in texts] + ["", "é🙂"]
    shard = write_shard(tmp_path / "0.jsonl", texts)
    settings = dict(fim_rate=rate, fim=mode, seed=3) | (dict(pack=True, sequence_length=400) if pack else {})
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, **settings)
    extended, files = load_tokenizer(tmp_path / "out/tokenizer"), TokenFiles(tmp_path / "out")
    assert extended.vocab_size == tokenizer.vocab_size + 3 and extended.extends(tokenizer)
    documents = np.split(files.arrays[0], files.ends(0)[:-1].astype(int))
    expected = list(reference([text for text in texts if text], extended, 3, rate, mode))
    assert Counter(map(tuple, documents)) == Counter(expected)
    rearranged = sum(ids[0] == extended.id_of(PREFIX) for ids in expected)
    assert load_report(tmp_path / "out")["infill"] == {"rearranged": rearranged, "too_long": 0}
    assert manifest.windows == ("packed" if pack else "folder")


def test_a_document_too_long_for_a_packed_row_is_not_rearranged(tmp_path, texts, tokenizer):
    shard = write_shard(tmp_path / "0.jsonl", ["x = 1\n", "y = 2\n" * 100])
    prepare([shard], str(tmp_path / "out"), tokenizer, fim_rate=1.0, pack=True, sequence_length=64)
    files = TokenFiles(tmp_path / "out")
    assert load_report(tmp_path / "out")["infill"] == {"rearranged": 2, "too_long": 1}
    assert sum(int((ids == files.tokenizer().id_of(MIDDLE)).sum()) for ids in files.arrays) == 1


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
@pytest.mark.parametrize("mode", ["psm", "spm", "mixed"])
def test_a_prompt_is_the_beginning_of_a_training_document(tmp_path, tokenizer, mode, kind):
    plain = tiny_bpe() if kind == "bpe" else tokenizer
    with_infill(plain, mode).save(tmp_path / "t")
    extended = load_tokenizer(tmp_path / "t")
    encode = lambda text: extended.encode_batch([text], special_tokens=False)[0]
    pre, suf, mid = (extended.id_of(token) for token in TOKENS)
    assert (pre, suf, mid) == tuple(range(plain.vocab_size, plain.vocab_size + 3))
    prompt = infill_prompt(extended, "def f(", "return x\n")
    if mode == "spm":
        assert prompt == [pre, suf, *encode("return x\n"), mid, *encode("def f(")]
    else:
        assert prompt == [pre, *encode("def f("), suf, *encode("return x\n"), mid]
    assert encode(PREFIX) != [pre]  # in documents it is text


def test_models_that_do_not_know_fill_in_the_middle_are_named(tokenizer):
    with pytest.raises(UserError, match=r"^suffix: this model was not trained .*prepare --fim-rate$"):
        infill_prompt(tokenizer, "a", "b")
