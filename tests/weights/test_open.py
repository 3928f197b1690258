"""Models by hub id, read from a huggingface_hub cache without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tokenizers import pre_tokenizers

from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from tests.peers import peer, save, tiny_bpe

COMMIT, ANOTHER = "0" * 40, "1" * 40


def cached(root, name, model, form, tokenizer=None, *, commit=COMMIT, branch="main"):
    """Write a repository as in the hub cache after one revision has been downloaded."""
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
    assert "someone/absent: not found on this machine or in the hub cache" in result.stderr


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


@pytest.fixture
def half_cached(tmp_path, monkeypatch):
    """A function that makes a repository in huggingface_hub's cache, with a snapshot of links to blobs."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = save(peer(), tmp_path / "source")
    vocabulary = {"<|endoftext|>": 256} | {symbol: id for id, symbol in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n")

    def make(name, *files, commit=COMMIT, ref="main"):
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (repository / folder).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            (repository / f"blobs/{commit[0]}{number}").write_bytes((source / file).read_bytes())
            (repository / f"snapshots/{commit}/{file}").symlink_to(f"../../blobs/{commit[0]}{number}")
        if ref:
            (repository / "refs" / ref).write_text(commit)
        return repository

    return make


MODEL, BPE = ("config.json", "model.safetensors"), ("vocab.json", "merges.txt")
OFFLINE = "; the hub was not queried, since HF_HUB_OFFLINE is set"
WEIGHTS = "model*.safetensors or pytorch_model*.bin"


def error_message(read, name):
    with pytest.raises(UserError) as error:
        read(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_cached_tokenizer_without_a_model_loads_as_a_tokenizer_only(half_cached):
    half_cached("a/tokens", *BPE)
    assert load_tokenizer("a/tokens").vocab_size == 257
    assert error_message(open_model, "a/tokens") == (
        f"a/tokens: its hub cache contains merges.txt, vocab.json; missing: config.json and {WEIGHTS}{OFFLINE}"
    )


@pytest.mark.parametrize(
    ("files", "contains", "missing"),
    [
        (["config.json"], "config.json", WEIGHTS),
        (["model.safetensors", *BPE], "merges.txt, model.safetensors, vocab.json", "config.json"),
    ],
)
def test_missing_model_files_in_the_cache_are_listed(half_cached, files, contains, missing):
    half_cached("a/tiny", *files)
    expected = f"a/tiny: its hub cache contains {contains}; missing: {missing}{OFFLINE}"
    assert error_message(open_model, "a/tiny") == expected


def test_missing_tokenizer_files_in_the_cache_are_listed(half_cached):
    half_cached("a/tiny", *MODEL)
    missing = "tokenizer.json or tokenizer.model or vocab.json"
    assert f"; missing: {missing}{OFFLINE}" in error_message(load_tokenizer, "a/tiny")
    half_cached("a/half", "vocab.json")
    assert error_message(load_tokenizer, "a/half").startswith("a/half: has vocab.json but not merges.txt")


def test_an_interrupted_download_is_reported(half_cached):
    repository = half_cached("a/tiny", "config.json")
    (repository / "blobs/2f.incomplete").write_bytes(b"x")
    message = error_message(open_model, "a/tiny")
    assert f"contains config.json (with an interrupted download); missing: {WEIGHTS}" in message


def test_a_dangling_link_counts_as_missing(half_cached):
    repository = half_cached("a/tiny", *MODEL, *BPE)
    assert open_model("a/tiny").config.n_layer == 2
    (repository / "snapshots" / COMMIT / "model.safetensors").resolve().unlink()
    message = error_message(open_model, "a/tiny")
    assert f" (with a dangling link: model.safetensors); missing: {WEIGHTS}{OFFLINE}" in message
    assert load_tokenizer("a/tiny").vocab_size == 257


def test_a_shard_that_is_not_cached_is_reported_by_name(half_cached):
    repository = half_cached("a/tiny", *MODEL)
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert f"{snapshot}/model-00002-of-00002.safetensors: this shard of" in error_message(open_model, "a/tiny")


def test_cached_revisions_are_listed_if_the_requested_one_is_missing(half_cached):
    half_cached("a/tiny", *MODEL)
    half_cached("a/tiny", *MODEL, commit=ANOTHER, ref=None)
    for read in (open_model, load_tokenizer):
        message = f"a/tiny@new: not in the hub cache, which has only a/tiny@main, a/tiny@{ANOTHER}{OFFLINE}"
        assert error_message(read, "a/tiny@new") == message


def test_without_cached_branches_only_a_single_commit_is_used(half_cached):
    half_cached("a/tiny", *MODEL, ref=None)
    assert open_model("a/tiny").source.endswith(COMMIT)
    assert f"has only a/tiny@{COMMIT};" in error_message(open_model, "a/tiny@main")
    half_cached("a/tiny", *MODEL, commit=ANOTHER, ref=None)
    assert f"has only a/tiny@{COMMIT}, a/tiny@{ANOTHER};" in error_message(open_model, "a/tiny")


def test_a_branch_with_a_new_commit_does_not_fall_back_to_the_cached_old_one(half_cached):
    repository = half_cached("a/tiny", *MODEL)
    (repository / "refs/main").write_text(ANOTHER)
    assert f"has only a/tiny@{COMMIT};" in error_message(open_model, "a/tiny")


def test_the_error_for_a_folder_without_a_model_lists_the_supported_formats(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no complete checkpoint, Hugging Face model \(config.json\) or jaxformer"):
        open_model(str(tmp_path))


def test_missing_weights_and_an_invalid_config_are_reported(tmp_path):
    peer().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no model.safetensors"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not valid JSON"):
        open_model(str(tmp_path))


def test_safetensors_are_preferred_to_bin(tmp_path):
    save(peer(), tmp_path, "safetensors")
    torch.save({"wrong": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    assert open_model(str(tmp_path)).config.n_layer == 2


def test_a_bin_file_may_contain_parameters_instead_of_tensors(tmp_path):
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
            (
                {"model_type": name},
                f"config.json: model_type is {name}, but only codegen .*; load .* with transformers$",
            )
            for name in ("gpt_bigcode", "gpt_neox", "starcoder2", "gpt2", "qwen2", None, ["codegen"])
        ],
        ({"model_type": "llama"}, "; load the model with transformers; CodeGen2.5 is a Llama"),
        ({"model_type": "gptj"}, "if convert --to gptj wrote it, use its source"),
        *[
            ({"quantization_config": {"quant_method": name, "bits": 4}}, "quantized weights, which are not supported")
            for name in ("gptq", "awq", "bitsandbytes")
        ],
    ],
)
def test_an_unsupported_model_is_rejected_with_a_remedy(tmp_path, changes, words):
    save(peer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        open_model(str(tmp_path))


def test_the_error_for_a_file_with_more_than_weights_explains_how_to_save_only_weights(tmp_path):
    peer().config.save_pretrained(tmp_path)
    torch.save({"model": {"x": torch.zeros(3)}, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"model is a dict, not a tensor; save .* torch.save\(model.state_dict\(\), FILE\)"
    ):
        open_model(str(tmp_path))
