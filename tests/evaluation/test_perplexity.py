"""Perplexity equals the validation loss in training; int8 weights change it little."""

import json

import numpy as np
import pytest

import codegen_jax
from codegen_jax.data.prepare import prepare
from codegen_jax.errors import UserError
from codegen_jax.evaluation.perplexity import measure_perplexity
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from tests.peers import peer, save, tiny_bpe
from tests.runs import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, token_folder):
    """A run whose loss has fallen from 6.2 to below 5."""
    output = tmp_path_factory.mktemp("trained") / "run"
    optimizer = {"decay_steps": 60}
    train(
        tiny_run(
            output, token_folder, optimizer=optimizer, training={"steps": 60}, data={"validation": str(token_folder)}
        )
    )
    return str(output)


def test_loss_equals_the_validation_loss_in_training(trained, token_folder):
    last = [line for line in read_metrics(trained) if "validation_loss" in line][-1]
    rows = 2 * 16  # eval_batches * batch_size
    found = measure_perplexity(codegen_jax.load(trained), str(token_folder), sequence_length=32, max_windows=rows)
    assert found.tokens == rows * 32
    assert found.loss == pytest.approx(last["validation_loss"], rel=1e-5)
    assert found.bits_per_byte == pytest.approx(last["bits_per_byte"], rel=1e-5)


def test_int8_stays_within_one_percent_of_the_float32_perplexity(trained, token_folder):
    whole, int8 = (
        measure_perplexity(
            codegen_jax.load(trained, quantize=name), str(token_folder), sequence_length=127, max_windows=64
        )
        for name in (None, "int8")
    )
    assert whole.loss < 5.0
    assert whole != int8 and abs(int8.perplexity / whole.perplexity - 1) < 0.01


def test_files_of_another_tokenizer_and_invalid_lengths_are_refused(trained, token_folder, tmp_path):
    other = codegen_jax.load(str(save(peer(), tmp_path / "hf", tokenizer=tiny_bpe())))
    with pytest.raises(UserError, match=f"but the model's is {tiny_bpe().fingerprint}"):
        measure_perplexity(other, str(token_folder))
    with pytest.raises(UserError, match="sequence_length: must be positive and below the model's context"):
        measure_perplexity(codegen_jax.load(trained), str(token_folder), 2048)


def test_only_trained_tokens_of_examples_count(trained, tmp_path, texts, tokenizer):
    records = [{"prompt": text[:30], "completion": text[30 : 40 + n]} for n, text in enumerate(texts[:20])]
    (tmp_path / "0.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    model = codegen_jax.load(trained)
    prepare([f"{tmp_path}/0.jsonl"], f"{tmp_path}/tokens", tokenizer, format="pairs", pack=True)
    total, tokens = 0.0, 0
    for record in records:
        prompt, completion = (tokenizer.encode(record[name]) for name in ("prompt", "completion"))
        ids = [*prompt, *completion, tokenizer.eos_id]
        logprobs = model.logprobs(np.array([ids]))[0][0, len(prompt) - 1 :]
        total, tokens = total - logprobs.sum(), tokens + len(logprobs)
    found = measure_perplexity(model, f"{tmp_path}/tokens")
    with pytest.raises(UserError, match=r"^sequence_length: not for .*, whose examples have rows of their own"):
        measure_perplexity(model, f"{tmp_path}/tokens", sequence_length=64)
    assert found.tokens == tokens
    np.testing.assert_allclose(found.loss, total / tokens, rtol=1e-5)


def test_a_prompts_token_0_is_not_padding(tmp_path):
    tokenizer = tiny_bpe()
    model = codegen_jax.load(str(save(peer(), tmp_path / "hf", tokenizer=tokenizer)))
    (tmp_path / "0.jsonl").write_text(json.dumps({"prompt": "a<|endoftext|>b", "completion": "c"}))
    settings = dict(format="pairs", special_tokens=True, sequence_length=32)
    prepare([f"{tmp_path}/0.jsonl"], f"{tmp_path}/tokens", tokenizer, **settings)
    ids = tokenizer.encode("a<|endoftext|>bc<|endoftext|>")
    assert ids.index(0) == 1
    expected = -model.logprobs(np.array([ids]))[0][0, -2:].mean()
    np.testing.assert_allclose(measure_perplexity(model, f"{tmp_path}/tokens").loss, expected, rtol=1e-5)
