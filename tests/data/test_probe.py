"""Tokenizers that change code are rejected; changes to rare text are reported."""

import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.probe import check_tokenizer
from codegen_jax.data.tokenizer import BpeTokenizer
from codegen_jax.errors import UserError
from tests.conftest import write_shard
from tests.data.foreign import FOREIGN, sentencepiece
from tests.peers import tiny_bpe

REJECTED = {
    "sentencepiece's defaults": r"does not preserve code: 'def f\(x\):\\n    .* is decoded as 'def f\(x\): return x",
    "lowercase": "does not preserve code: .* is decoded as .*upper and lower: abc abc",
    "stripped ends": "does not preserve code",
}
WARNED = {
    "space prefix": "'a\u2581b' is decoded as ' a\u2581b'",
    "NFKC": "\uff21",
    "Llama's sentencepiece": "",
}
LOSSLESS = (
    "GPT-2's rules",
    "whitespace tokens",
    "Llama 3's rules",
    "single digits",
    "no pre-tokenizer",
    "lines as words",
)


@pytest.mark.parametrize("name", REJECTED)
def test_a_tokenizer_that_changes_code_is_rejected_and_nothing_is_written(tmp_path, texts, name):
    tokenizer = FOREIGN[name](texts[::4])
    with pytest.raises(UserError, match=f"^tokenizer: .*{REJECTED[name]}"):
        prepare([write_shard(tmp_path / "a.jsonl", ["x"])], str(tmp_path / "out"), tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WARNED)
def test_a_tokenizer_that_changes_rare_text_causes_a_warning_with_the_text(texts, caplog, name):
    check_tokenizer(FOREIGN[name](texts[::4]))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and WARNED[name] in record.getMessage()


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_tokenizer_is_accepted_without_a_warning(texts, tokenizer, caplog, name):
    check_tokenizer(FOREIGN[name](texts[::4]))
    check_tokenizer(tokenizer)
    assert not caplog.records


def test_a_sentencepiece_model_without_eos_is_rejected(texts):
    with pytest.raises(UserError, match="no eos piece to end documents with"):
        check_tokenizer(sentencepiece(texts[::4], eos_id=-1))


def test_eos_in_encoded_text_is_rejected():
    class Careless(BpeTokenizer):
        def encode_batch(self, texts, special_tokens=True):
            return super().encode_batch(texts)

    with pytest.raises(UserError, match=r"with the id 0, which must only end documents"):
        check_tokenizer(Careless(tiny_bpe().files()["tokenizer.json"].decode()))
