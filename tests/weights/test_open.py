"""Models by hub id, from a cache as huggingface_hub keeps it; there is no network here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from tests.peers import peer, save

COMMIT = "0" * 40


def cached(root, name, model, form, tokenizer=None):
    """A repository as it lies in the hub's cache after a download."""
    repository = root / f"models--{name.replace('/', '--')}"
    save(model, repository / "snapshots" / COMMIT, form, tokenizer)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


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
    assert "someone/absent: neither a folder on this machine nor a model from the hub" in result.stderr


@pytest.mark.parametrize("name", ["no such folder!", "one/two/three", "absent"])
def test_what_cannot_be_a_hub_id_is_named(name):
    with pytest.raises(UserError, match="neither a folder on this machine nor a model"):
        open_model(name)


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
