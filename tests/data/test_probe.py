"""Tokenizers that change text are refused, or their changes are shown."""

import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.probe import check_tokenizer
from codegen_jax.data.tokenizer import BpeTokenizer
from codegen_jax.errors import UserError
from tests.conftest import write_shard
from tests.data.foreign import FOREIGN, sentencepiece
from tests.peers import tiny_bpe

REFUSED = {
    "sentencepiece's defaults": r"does not keep code: 'def f\(x\):\\n    return .* comes back as 'def f\(x\): return x",
    "lower case": "does not keep code: .* comes back as .*upper and lower: abc abc",
    "ends stripped": "does not keep code",
}
WARNED = {
    "a space before": "'a\u2581b' comes back as ' a\u2581b'",
    "NFKC": "\uff21",
    "Llama's sentencepiece": "",
}
KEPT = ("GPT-2's rules", "whitespace tokens", "Llama 3's rules", "digits apart", "no words", "lines as words")


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_loses_code_is_refused_and_nothing_is_written(tmp_path, texts, name):
    tokenizer = FOREIGN[name](texts[::4])
    with pytest.raises(UserError, match=f"^tokenizer: .*{REFUSED[name]}"):
        prepare([write_shard(tmp_path / "a.jsonl", ["x"])], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WARNED)
def test_a_tokenizer_that_changes_rare_text_is_warned_of_with_the_text(texts, caplog, name):
    check_tokenizer(FOREIGN[name](texts[::4]))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and WARNED[name] in record.getMessage()


@pytest.mark.parametrize("name", KEPT)
def test_a_tokenizer_that_keeps_all_text_is_taken_in_silence(texts, tokenizer, caplog, name):
    check_tokenizer(FOREIGN[name](texts[::4]))
    check_tokenizer(tokenizer)
    assert not caplog.records


def test_a_sentencepiece_model_without_an_eos_is_refused(texts):
    with pytest.raises(UserError, match="no eos piece, which ends documents"):
        check_tokenizer(sentencepiece(texts[::4], eos_id=-1))


def test_an_eos_in_the_middle_of_text_is_refused():
    class Careless(BpeTokenizer):
        def encode_batch(self, texts, special_tokens=True):
            return super().encode_batch(texts)

    with pytest.raises(UserError, match=r"has the id 0 in it, which ends documents"):
        check_tokenizer(Careless(tiny_bpe().files()["tokenizer.json"].decode()))
