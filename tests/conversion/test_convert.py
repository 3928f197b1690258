"""Guarantees of a conversion apart from the layout: no partial output, little memory, no silent overflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import codegen_jax
from codegen_jax.config import CodeGenConfig
from codegen_jax.conversion import convert as convert_module
from codegen_jax.conversion.convert import convert
from codegen_jax.data.tokenizer import BpeTokenizer
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import abstract_params, init_params, module
from codegen_jax.sharding import make_mesh
from codegen_jax.training.checkpoint import Checkpoints
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import init_state
from codegen_jax.weights.base import load_params
from codegen_jax.weights.huggingface_layout import tensor_shapes
from codegen_jax.weights.open import open_model
from codegen_jax.weights.tensors import TensorStream, write_tensors
from tests.peers import peer, save, tiny_bpe
from tests.runs import tiny_run


def test_a_value_beyond_float16_is_reported_and_nothing_is_written(tmp_path):
    model = peer()
    model.transformer.h[1].mlp.fc_in.weight.data[2, 3] = 1e5
    save(model, tmp_path / "hf")
    for to in ("jax", "hf"):
        with pytest.raises(UserError, match=r"blocks.fc_in of layer 1 .* 100000, above .* 65504; use bfloat16"):
            convert(str(tmp_path / "hf"), str(tmp_path / "out"), to=to, dtype="float16")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), dtype="bfloat16")


def test_a_value_beyond_bfloat16_is_reported_too(tmp_path):
    model = peer()
    model.lm_head.weight.data[2, 3] = -3.4e38  # the maximum is 3.403e38 for float32 and 3.390e38 for bfloat16
    message = r"^dtype: bfloat16: head in .* 3.4e\+38, above the maximum of 3.38953e\+38; use float32$"
    with pytest.raises(UserError, match=message):
        convert(str(save(model, tmp_path / "hf")), str(tmp_path / "out"), dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_rounds_once_and_to_nearest(tmp_path, dtype):
    model = peer()
    convert(str(save(model, tmp_path / "hf")), str(tmp_path / "out"), to="hf", dtype=dtype)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name].to(getattr(torch, dtype)))


def test_float16_to_bfloat16_rounds_as_pytorch_does(tmp_path):
    model = peer(dtype=torch.float16)
    convert(str(save(model, tmp_path / "hf")), str(tmp_path / "out"), to="hf", dtype="bfloat16")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16))


@pytest.mark.parametrize("existing", ["file", "folder with a file"])
def test_an_existing_destination_is_not_overwritten(tmp_path, existing):
    save(peer(), tmp_path / "hf")
    out = tmp_path / "out"
    if existing == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="out: already exists and is not an empty folder"):
        convert(str(tmp_path / "hf"), str(out))
    assert (out if existing == "file" else out / "thesis.txt").read_text() == "mine"


def test_a_failed_verification_leaves_no_destination(tmp_path, monkeypatch):
    save(peer(), tmp_path / "hf")
    monkeypatch.setattr("codegen_jax.conversion.verify.EXACT", 1e-12)
    with pytest.raises(UserError, match="gives different results"):
        convert(str(tmp_path / "hf"), str(tmp_path / "out"), proof="numpy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_insufficient_disk_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    save(peer(), tmp_path / "hf")
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs 0.0 GB"):
        convert(str(tmp_path / "hf"), str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("to", ["jax", "hf"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_nothing_that_looks_complete(tmp_path, to, signum):
    save(peer(n_layer=4), tmp_path / "hf")
    slow = (  # a real process, slowed down so that the signal arrives midway
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs of a shell ignore SIGINT
        "from codegen_jax.weights.huggingface_layout import HuggingFaceWeights as W\n"
        "read = W.read\n"
        "def slow(*arguments):\n    time.sleep(0.5)\n    print('reading', flush=True)\n    return read(*arguments)\n"
        "W.read = slow\n"
        "from codegen_jax.cli import main\n"
        f"main(['convert', 'hf', 'out', '--to', '{to}'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if signum == signal.SIGINT:
        assert process.returncode == 130 and b"Traceback" not in errors, errors
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    with pytest.raises(UserError):
        open_model(str(tmp_path / "out"))
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), to=to, proof="numpy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out"]


@pytest.fixture
def trained(tmp_path, tokenizer):
    """A training checkpoint of a network with a nonzero embedding bias."""
    config = tiny_run(output=tmp_path / "run", model={"embedding_bias": True})
    mesh = make_mesh(config.mesh)
    params = jax.tree.map(lambda p: 3 * p, init_params(config.model, 0))
    params["embedding_bias"] = jax.random.normal(jax.random.key(1), (32,))
    checkpoints = Checkpoints(config, tokenizer, {})
    state = init_state(resolve(config, mesh), params)
    checkpoints.save(state, None)
    checkpoints.finish(state)
    checkpoints.close()
    return config, params


@pytest.mark.parametrize("to", ["hf", "gptj"])
def test_a_trained_model_loads_in_transformers_with_the_embedding_bias_folded_in(tmp_path, trained, tokenizer, to):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, params = trained
    summary = convert(str(config.output), str(tmp_path / "out"), to=to, proof="torch")
    assert summary.parameters == config.model.n_params - 32
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = np.random.default_rng(0).integers(0, 512, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert np.abs(module(config.model, params)(tokens) - expected).max() < 1e-4 * np.abs(expected).max()
    text = "def f(x):\n    return x"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tokenizer.encode(text)
    if to == "hf":
        assert_same_completions(str(config.output), str(tmp_path / "out"))


def assert_same_completions(one, other):
    options = dict(max_new_tokens=12, temperature=0)
    first, second = (codegen_jax.load(model).complete(["def f("], **options)[0] for model in (one, other))
    assert first.token_ids == second.token_ids


def test_a_trained_run_converts_to_a_checkpoint_with_weights_only(tmp_path, trained):
    config, _ = trained
    convert(str(config.output), str(tmp_path / "slim"), dtype="bfloat16")
    assert open_model(str(tmp_path / "slim")).dtype("head").name == "bfloat16"
    codegen_jax.load(str(tmp_path / "slim")).generate("def f(", max_new_tokens=4)
    with pytest.raises(UserError, match="both in our format"):
        convert(str(config.output), str(tmp_path / "again"), proof="numpy")


def test_a_tokenizer_with_different_ids_than_the_sources_causes_a_warning(tmp_path, tokenizer, caplog):
    own = tiny_bpe()
    spaces = BpeTokenizer(own.files()["tokenizer.json"].decode(), whitespace_tokens=True)
    source = str(save(peer(vocab_size=512), tmp_path / "hf", tokenizer=own))
    convert(source, str(tmp_path / "extended"), tokenizer=spaces)
    assert "stand for different text" not in caplog.text
    convert(source, str(tmp_path / "other"), tokenizer=tokenizer)
    assert (
        f"tokenizer: the ids of {tokenizer.fingerprint} stand for different text than those of {source}'s tokenizer"
        in caplog.text
    )


def test_an_embedding_bias_missing_from_the_source_starts_at_zero(tmp_path):
    weights = open_model(str(save(peer(), tmp_path / "hf")))
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=300, embedding_bias=True, dtype="float32")
    params = load_params(weights, abstract_params(config))
    assert not params["embedding_bias"].any() and params["embedding"].any()


def write_wide_model(folder, n_layer):
    """Write a folder with float16 layers of width 2048, 100 MB each."""
    config = CodeGenConfig(n_layer, 2048, 16, 64, vocab_size=512)
    half = np.dtype(np.float16)
    streams = {
        name: TensorStream(shape, half, lambda shape=shape: [np.full(shape, 0.01, half)])
        for name, shape in tensor_shapes(config).items()
    }
    folder.mkdir()
    write_tensors(folder, streams, lambda _: None, max_shard_size="400MB")
    names = ("n_layer", "n_embd", "n_head", "rotary_dim", "vocab_size")
    fields = {name: getattr(config, name) for name in names}
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "codegen"}))


def peak_megabytes(source, destination, to):
    """Peak memory of a process that converts, as counted by the kernel over the process's lifetime."""
    code = (
        "from codegen_jax.conversion.convert import convert\n"
        f"convert({str(source)!r}, {str(destination)!r}, to={to!r})\n"
        "print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1e3)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    peaks = {}
    for n_layer in (2, 12):
        root = tmp_path / str(n_layer)
        root.mkdir()
        write_wide_model(root / "hf", n_layer)
        peaks[n_layer] = (
            peak_megabytes(root / "hf", root / "ours", "jax"),
            peak_megabytes(root / "ours", root / "back", "hf"),
        )
    # ten more layers are a gigabyte of weights
    assert max(peaks[12]) < max(peaks[2]) + 200, peaks


def test_the_summary_matches_the_written_files(tmp_path):
    model = peer(dtype=torch.float16)
    began = time.perf_counter()
    summary = convert(str(save(model, tmp_path / "hf")), str(tmp_path / "out"), to="hf")
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.nbytes == 2 * summary.parameters and summary.dtypes == ["float16"]
    assert 0 < summary.seconds < time.perf_counter() - began and summary.peak_bytes > 1e8
    header = (tmp_path / "out" / "model.safetensors").stat().st_size - summary.nbytes
    assert 0 < header < 10_000
