"""Models by hub id, from a cache as huggingface_hub keeps it; there is no network here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from tests.peers import peer, save, tiny_bpe

COMMIT, ANOTHER = "0" * 40, "1" * 40


def cached(root, name, model, form, tokenizer=None, *, commit=COMMIT, branch="main"):
    """A repository as it lies in the hub's cache after a download of one revision."""
    repository = root / f"models--{name.replace('/', '--')}"
    save(model, repository / "snapshots" / commit, form, tokenizer)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


@pytest.mark.parametrize("form", ["safetensors", "sharded bin"])
def test_a_hub_id_generates_from_the_cache_without_a_network(tmp_path, bpe, form):
    cached(tmp_path / "cache", "someone/codegen-tiny", peer(), form, bpe)
    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "codegen_jax", "generate"]
    words = ["--prompt", "def f(", "--max-new-tokens", "3", "--temperature", "0", "--json"]
    result = subprocess.run(
        [*command, "someone/codegen-tiny", *words], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["token_ids"]) == 3
    result = subprocess.run(
        [*command, "someone/absent", *words], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "someone/absent: neither on this machine nor in the hub's cache" in result.stderr


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_hub_id_may_name_a_revision(tmp_path, monkeypatch, texts, form):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tokenizers = [tiny_bpe(texts, vocab_size=size) for size in (290, 300)]
    cached(tmp_path, "a/tiny", peer(), form, tokenizers[0])
    cached(tmp_path, "a/tiny", peer(n_layer=3), form, tokenizers[1], commit=ANOTHER, branch="old")
    for revision, layers in (("", 2), ("@main", 2), ("@old", 3), (f"@{ANOTHER}", 3)):
        tokenizer = tokenizers[layers - 2]
        weights = open_model(f"a/tiny{revision}")
        assert weights.config.n_layer == layers and weights.tokenizer.fingerprint == tokenizer.fingerprint
        assert load_tokenizer(f"a/tiny{revision}").fingerprint == tokenizer.fingerprint
    for absent in ("a/tiny@new", "a/tiny@"):
        for read in (open_model, load_tokenizer):
            with pytest.raises(UserError, match=f"^{absent}: "):
                read(absent)


def test_a_folder_that_holds_no_model_says_what_would(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no whole checkpoint here, nor a Hugging Face model \(config.json\)"):
        open_model(str(tmp_path))


def test_a_config_without_weights_or_that_is_not_json_is_named(tmp_path):
    peer().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no model.safetensors"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        open_model(str(tmp_path))


def test_safetensors_come_before_bin(tmp_path):
    save(peer(), tmp_path, "safetensors")
    torch.save({"wrong": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    assert open_model(str(tmp_path)).config.n_layer == 2


def test_a_bin_file_may_hold_parameters_in_place_of_tensors(tmp_path):
    model = peer()
    model.config.save_pretrained(tmp_path)
    torch.save(dict(model.named_parameters()), tmp_path / "pytorch_model.bin")
    weights = open_model(str(tmp_path))
    region = weights.read("embedding", (slice(0, 3), slice(0, 5)))
    expected = model.transformer.wte.weight.detach()[:3, :5]
    assert (torch.tensor(region) == expected).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[
            ({"model_type": name}, f"config.json: model_type is {name}, not codegen, .*; load it with transformers$")
            for name in ("gpt_bigcode", "gpt_neox", "starcoder2", "gpt2", "qwen2", None, ["codegen"])
        ],
        ({"model_type": "llama"}, "; load it with transformers; CodeGen2.5 is one"),
        ({"model_type": "gptj"}, "of what convert --to gptj made, give the source"),
        *[
            ({"quantization_config": {"quant_method": name, "bits": 4}}, "quantized weights, which are not read; give")
            for name in ("gptq", "awq", "bitsandbytes")
        ],
    ],
)
def test_a_model_that_is_not_read_is_named_with_what_to_give(tmp_path, changes, words):
    save(peer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        open_model(str(tmp_path))


def test_a_file_of_more_than_weights_says_how_to_save_those_alone(tmp_path):
    peer().config.save_pretrained(tmp_path)
    torch.save({"model": {"x": torch.zeros(3)}, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"model is a dict, not a tensor; save .* torch.save\(model.state_dict\(\), FILE\)"
    ):
        open_model(str(tmp_path))
