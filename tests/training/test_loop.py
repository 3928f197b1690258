"""Whole runs: exact resume on the same mesh, close agreement on others, and errors before the first step."""

import shutil

import numpy as np
import pytest

from codegen_jax.config import MeshConfig, SourceConfig
from codegen_jax.data.prepare import prepare
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.data.train_tokenizer import train_sentencepiece
from codegen_jax.errors import UserError
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from tests.conftest import write_shard
from tests.runs import tiny_run


def run(output, tokens, **sections):
    data = {"validation": str(tokens)} | sections.pop("data", {})
    return tiny_run(output, tokens, data=data, **sections)


def mixture(sources):
    return {"train": None, "validation": None, "sources": sources}


def losses(output):
    return {line["step"]: line["loss"] for line in read_metrics(output) if "loss" in line}


def validation(output):
    return {line["step"]: line["validation_loss"] for line in read_metrics(output) if "validation_loss" in line}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, token_folder):
    output = tmp_path_factory.mktemp("loop") / "whole"
    train(run(output, token_folder))
    return output


def test_run_learns_and_writes_its_records(uninterrupted, token_folder):
    values = losses(uninterrupted)
    assert list(values) == [1, 2, 3, 4, 5, 6] and values[6] < values[1] - 0.2
    assert list(validation(uninterrupted)) == [2, 3, 4, 6]
    line = read_metrics(uninterrupted)[-2]
    assert {"perplexity", "grad_norm", "learning_rate"} <= line.keys()
    line = read_metrics(uninterrupted)[-1]
    validation_files = TokenFiles(token_folder)
    nats = line["validation_loss"] * validation_files.manifest.tokens
    assert line["bits_per_byte"] == pytest.approx(nats / np.log(2) / validation_files.manifest.text_bytes)
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((uninterrupted / "tensorboard").iterdir())


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resumed_run_matches_the_uninterrupted_one_bit_for_bit(tmp_path, token_folder, uninterrupted, stop):
    train(run(tmp_path / "run", token_folder, training={"steps": stop}))
    train(run(tmp_path / "run", token_folder))
    assert losses(tmp_path / "run") == losses(uninterrupted)
    assert validation(tmp_path / "run").items() >= validation(uninterrupted).items()


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)])
def test_run_resumed_on_another_mesh_has_the_same_losses(tmp_path, token_folder, uninterrupted, axes):
    train(run(tmp_path / "run", token_folder, training={"steps": 3}))
    train(run(tmp_path / "run", token_folder, mesh=MeshConfig(*axes)))
    actual, expected = losses(tmp_path / "run"), losses(uninterrupted)
    np.testing.assert_allclose([actual[s] for s in expected], list(expected.values()), rtol=1e-5)


def test_validation_and_saving_do_not_affect_training(tmp_path, token_folder, uninterrupted):
    infrequent = run(tmp_path / "run", token_folder, training={"eval_every": 1000}, checkpoint={"save_every": 1000})
    train(infrequent)
    assert losses(tmp_path / "run") == losses(uninterrupted)


def test_init_from_uses_only_the_weights(tmp_path, token_folder, uninterrupted):
    config = run(tmp_path / "run", token_folder, init_from=str(uninterrupted), seed=7)
    train(config)
    lines = read_metrics(tmp_path / "run")
    assert lines[0]["step"] == 1 and lines[0]["learning_rate"] == 0
    assert lines[0]["loss"] < losses(uninterrupted)[1] - 0.3


def test_init_from_with_a_different_architecture_is_refused(tmp_path, token_folder, uninterrupted):
    config = run(tmp_path / "run", token_folder, init_from=str(uninterrupted), model={"n_layer": 3})
    with pytest.raises(UserError, match=r"^model: .* in init_from has a different architecture"):
        train(config)


def test_init_from_that_is_not_a_model_is_refused_before_anything_is_written(tmp_path, token_folder):
    with pytest.raises(UserError, match="no complete checkpoint"):
        train(run(tmp_path / "run", token_folder, init_from=str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_run_resumes_without_its_initial_weights(tmp_path, token_folder, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path / "weights")
    config = run(tmp_path / "run", token_folder, init_from=str(tmp_path / "weights"), training={"steps": 2})
    train(config)
    shutil.rmtree(tmp_path / "weights")
    train(run(tmp_path / "run", token_folder, init_from=config.init_from, training={"steps": 3}))
    assert list(losses(tmp_path / "run")) == [1, 2, 3]


def test_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path, token_folder):
    with pytest.raises(UserError, match=r"model.vocab_size: must be at least 512"):
        train(run(tmp_path / "run", token_folder, model={"vocab_size": 256}))
    assert not (tmp_path / "run").exists()


def test_mixture_is_validated_and_its_epochs_counted_by_source(tmp_path, token_folder):
    sources = {
        "a": SourceConfig(str(token_folder), 0.75, str(token_folder)),
        "b": SourceConfig(str(token_folder), 0.25),
        "c": SourceConfig(str(token_folder), 1.0, str(token_folder)),
    }
    config = run(tmp_path / "run", None, data=mixture(sources))
    train(config)
    lines = read_metrics(tmp_path / "run")
    windows = len(Windows(TokenFiles(token_folder), 32))
    counts = {"a": 6 * 16 * 3 // 8, "b": 6 * 16 // 8, "c": 6 * 16 // 2}
    assert lines[-2] | {f"epoch/{name}": count / windows for name, count in counts.items()} == lines[-2]
    assert (
        lines[-1]["validation_loss/a"] == lines[-1]["validation_loss/c"] == pytest.approx(lines[-1]["validation_loss"])
    )
    assert "validation_loss/b" not in lines[-1]
    moved = shutil.copytree(token_folder, tmp_path / "moved")
    sources["b"] = SourceConfig(str(moved), 0.25, str(moved))
    train(run(tmp_path / "run", None, data=mixture(sources), training={"steps": 7}))
    sources["b"] = SourceConfig(str(moved), 0.5)
    with pytest.raises(UserError, match=r"data.sources.b.weight is 0.25 there, 0.5 here"):
        train(run(tmp_path / "run", None, data=mixture(sources)))


def test_skip_steps_may_change_future_steps_only(tmp_path, token_folder):
    whole = run(tmp_path / "whole", token_folder, data={"skip_steps": [[4, 5]]})
    train(whole)
    train(run(tmp_path / "run", token_folder, training={"steps": 3}))
    with pytest.raises(UserError, match=r"data.skip_steps: \[3, 5\] would change steps that .* is step 3\); .* move"):
        train(run(tmp_path / "run", token_folder, data={"skip_steps": [[3, 5]]}))
    train(run(tmp_path / "run", token_folder, data={"skip_steps": [[4, 5]]}))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    with pytest.raises(UserError, match=r"\[4, 5\] would change steps"):
        train(run(tmp_path / "run", token_folder))


def test_changed_token_files_are_refused_before_the_first_step(tmp_path, token_folder, texts, tokenizer):
    train(run(tmp_path / "run", token_folder, training={"steps": 2}))
    before = (tmp_path / "run/metrics.jsonl").read_text()
    prepare([write_shard(tmp_path / "more.jsonl", [*texts, *texts])], str(tmp_path / "grown"), tokenizer)
    with pytest.raises(UserError, match=r"data.train: not the token files that .* has trained on: \d+ tokens of "):
        train(run(tmp_path / "run", tmp_path / "grown"))
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


def test_sources_with_different_tokenizers_are_refused(tmp_path, token_folder, texts, tokenizer):
    other = train_sentencepiece(texts, vocab_size=400)
    prepare([write_shard(tmp_path / "v.jsonl", texts)], str(tmp_path / "v"), other)
    sources = {"a": SourceConfig(str(token_folder), 1), "b": SourceConfig(str(tmp_path / "v"), 1)}
    with pytest.raises(UserError, match=f"{other.fingerprint}, .*{tokenizer.fingerprint}; prepare all"):
        train(run(tmp_path / "run", None, data=mixture(sources)))
    assert not (tmp_path / "run").exists()


def test_validation_files_with_a_different_tokenizer_are_refused(tmp_path, token_folder, texts):
    other = train_sentencepiece(texts, vocab_size=400)
    prepare([write_shard(tmp_path / "v.jsonl", texts)], str(tmp_path / "v"), other)
    with pytest.raises(UserError, match=f"/v was made with tokenizer {other.fingerprint}"):
        train(run(tmp_path / "run", token_folder, data={"validation": str(tmp_path / "v")}))


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_missing_token_files_are_named_before_anything_is_written(tmp_path, token_folder, missing):
    with pytest.raises(UserError, match=r"nowhere: missing or empty token files"):
        train(run(tmp_path / "run", token_folder, data={missing: str(tmp_path / "nowhere")}))
    assert not (tmp_path / "run").exists()
