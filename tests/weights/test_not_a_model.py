"""Errors for paths that are not models: they describe the path and what to use instead."""

import shutil

import pytest

from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from tests.peers import peer, save

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 797365000\n"
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory, bpe):
    return save(peer(), tmp_path_factory.mktemp("model") / "model", tokenizer=bpe)


def error_message(path, load=open_model):
    with pytest.raises(UserError) as error:
        load(str(path))
    assert str(error.value).startswith(f"{path}")
    return str(error.value)


@pytest.mark.parametrize(
    ("above", "model"),
    [
        ("", "model"),
        ("downloads", "downloads/new/model"),
        ("trainer", "trainer/checkpoint-1000"),
        ("models--a--b", f"models--a--b/snapshots/{COMMIT}"),
        ("models--a--b/snapshots", f"models--a--b/snapshots/{COMMIT}"),
        (".cache/hub", f".cache/hub/models--a--b/snapshots/{COMMIT}"),
    ],
)
@pytest.mark.parametrize("load", [open_model, load_tokenizer])
def test_a_model_below_the_given_folder_is_suggested_and_loads(tmp_path, saved, above, model, load):
    shutil.copytree(saved, tmp_path / model)
    if above == "trainer":
        shutil.copytree(saved, tmp_path / "trainer/checkpoint-500")
        (tmp_path / "trainer/trainer_state.json").write_text("{}")
    assert error_message(tmp_path / above, load).endswith(f"; use {tmp_path / model}")
    load(str(tmp_path / model))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_folder_of_a_models_file_is_suggested(saved, name):
    assert error_message(saved / name).endswith(f"is a file, but must be a folder; use {saved}")


def test_the_model_around_the_given_folder_is_suggested(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    (model / "onnx").mkdir()
    assert error_message(model / "onnx").endswith(f"a part of a model; use {model}")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["adapter_model.bin"], "a PEFT adapter"),
        (["codegen.Q4_K_M.gguf"], "GGUF"),
        (["config.json", "codegen.Q4_K_M.gguf"], "GGUF"),
        (["config.json", "quantize_config.json", "gptq_model-4bit-128g.safetensors"], "quantized weights"),
        (["quant_config.json", "model.safetensors"], "quantized weights"),
        (["config.json", "gptq_model-4bit-128g.safetensors"], "quantized weights"),
        (["config.json", "zero_to_fp32.py", "latest"], "python zero_to_fp32.py CHECKPOINT OUT"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "a DeepSpeed checkpoint"),
        (["config.json", "__0_0.distcp", "__1_0.distcp", ".metadata"], "dcp_to_torch SHARDS FILE"),
        (["config.json", "pytorch_model_fsdp_0"], "a torch.distributed checkpoint"),
        (["latest_checkpointed_iteration.txt"], "a Megatron checkpoint"),
        (["mp_rank_00"], "a Megatron checkpoint"),
        (["last.ckpt"], "a Lightning checkpoint"),
        (["flax_model.msgpack"], "Flax weights"),
        (["flax_model-00001-of-00002.msgpack"], "Flax weights"),
        (["tf_model.h5"], "TensorFlow weights"),
        (["config.json", "flax_model.msgpack"], "Flax weights"),
        (["config.json", "tf_model.h5"], "TensorFlow weights"),
        (["config.json", "onnx"], "weights for ONNX"),
        (["model.bin", "vocabulary.json"], "weights for CTranslate2"),
        (["config.json", "model.fp16.safetensors"], "from_pretrained with variant"),
        (["config.json", "pytorch_model.fp16-00001-of-00002.bin"], "from_pretrained with variant"),
        (["config.json", "consolidated.00.pth"], "the layout of Meta's"),
        (["config.json", "optimizer.pt", "scheduler.pt"], "a Trainer's optimizer state"),
        (["model.safetensors"], "without their config.json"),
        (["run.json"], "a run without a complete checkpoint; codegen-jax train"),
        (["manifest.json"], "token files, not a model"),
        (["tokenizer.json"], "a tokenizer without weights"),
        ([], "the folder is empty"),
        (["a.txt", "b.txt"], "the folder contains a.txt, b.txt"),
    ],
)
def test_a_folder_of_something_else_is_recognized(tmp_path, saved, files, words):
    for name in files:
        (tmp_path / name).write_text((saved / name).read_text() if name == "config.json" else "{}")
    assert words in error_message(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", "a PEFT adapter"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("last.ckpt", "Lightning"),
        ("vocabulary.txt", "CTranslate2"),
    ],
)
def test_a_config_without_model_type_is_recognized_by_the_other_files(tmp_path, name, words):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{}")
    assert words in error_message(tmp_path)


def test_a_complete_model_is_read_despite_other_files_in_its_folder(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    for name in ("zero_to_fp32.py", "last.ckpt", "quantize_config.json", "model.gguf", "latest"):
        (model / name).write_text("{}")
    assert open_model(str(model)).config.n_layer == 2


def test_an_adapter_in_a_models_folder_is_not_ignored(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    (model / "adapter_config.json").write_text("{}")
    assert "a model and a PEFT adapter, which transformers would apply to it; merge them" in error_message(model)


def test_a_clone_without_files_is_recognized(tmp_path):
    (tmp_path / ".git").mkdir()
    assert "git checkout" in error_message(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_a_pointer_instead_of_a_file_is_recognized(tmp_path, saved, name):
    model = shutil.copytree(saved, tmp_path / "model")
    if name == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    (model / name).write_text(POINTER)
    assert f"{model / name}: a Git LFS pointer" in error_message(model)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin"])
def test_a_pointer_instead_of_a_shard_or_index_is_recognized(tmp_path, form):
    model = save(peer(), tmp_path / "model", form)
    shard = sorted(model.glob("*-of-*"))[-1]
    content = shard.read_bytes()
    shard.write_text(POINTER)
    assert f"{shard}: a Git LFS pointer" in error_message(model)
    shard.write_bytes(content)
    open_model(str(model))
    (index,) = model.glob("*.index.json")
    index.write_text(POINTER)
    assert f"{index}: a Git LFS pointer" in error_message(model)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_a_pointer_instead_of_a_tokenizer_file_is_recognized(tmp_path, name):
    for file in ("vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / name).write_text(POINTER)
    assert f"{tmp_path / name}: a Git LFS pointer" in error_message(tmp_path, load_tokenizer)


def test_a_pointer_instead_of_jaxformers_weights_is_recognized(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/0.npz").write_text(POINTER)
    assert f"{tmp_path / 'model/0.npz'}: a Git LFS pointer" in error_message(tmp_path)
