"""Errors for paths that are not models: they say what the path is and what to use instead, without guessing."""

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


def refused(path, load=open_model):
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
def test_of_a_folder_above_a_model_the_model_is_named_and_can_be_given(tmp_path, saved, above, model, load):
    shutil.copytree(saved, tmp_path / model)
    if above == "trainer":
        shutil.copytree(saved, tmp_path / "trainer/checkpoint-500")
        (tmp_path / "trainer/trainer_state.json").write_text("{}")
    assert refused(tmp_path / above, load).endswith(f"; give {tmp_path / model}")
    load(str(tmp_path / model))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_of_a_file_of_a_model_its_folder_is_named(saved, name):
    assert refused(saved / name).endswith(f"a file, where a folder is read; give {saved}")


def test_of_a_folder_within_a_model_the_model_is_named(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    (model / "onnx").mkdir()
    assert refused(model / "onnx").endswith(f"a part of a model; give {model}")


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
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "a checkpoint of DeepSpeed"),
        (["config.json", "__0_0.distcp", "__1_0.distcp", ".metadata"], "dcp_to_torch SHARDS FILE"),
        (["config.json", "pytorch_model_fsdp_0"], "a checkpoint of torch.distributed"),
        (["latest_checkpointed_iteration.txt"], "a checkpoint of Megatron"),
        (["mp_rank_00"], "a checkpoint of Megatron"),
        (["last.ckpt"], "a checkpoint of Lightning"),
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
        (["config.json", "optimizer.pt", "scheduler.pt"], "what a Trainer keeps"),
        (["model.safetensors"], "without their config.json"),
        (["run.json"], "no whole checkpoint yet; codegen-jax train"),
        (["manifest.json"], "token files, not a model"),
        (["tokenizer.json"], "a tokenizer without weights"),
        ([], "it is empty"),
        (["a.txt", "b.txt"], "it holds a.txt, b.txt"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path, saved, files, words):
    for name in files:
        (tmp_path / name).write_text((saved / name).read_text() if name == "config.json" else "{}")
    assert words in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", "a PEFT adapter"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("last.ckpt", "Lightning"),
        ("vocabulary.txt", "CTranslate2"),
    ],
)
def test_a_config_of_no_model_type_is_told_by_what_lies_beside_it(tmp_path, name, words):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{}")
    assert words in refused(tmp_path)


def test_a_whole_model_is_read_whatever_else_lies_beside_it(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    for name in ("zero_to_fp32.py", "last.ckpt", "quantize_config.json", "model.gguf", "latest"):
        (model / name).write_text("{}")
    assert open_model(str(model)).config.n_layer == 2


def test_an_adapter_beside_a_whole_model_is_not_passed_over(tmp_path, saved):
    model = shutil.copytree(saved, tmp_path / "model")
    (model / "adapter_config.json").write_text("{}")
    assert "a PEFT adapter beside it, which transformers would apply; merge the two" in refused(model)


def test_a_clone_without_files_is_named(tmp_path):
    (tmp_path / ".git").mkdir()
    assert "git checkout" in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_a_pointer_in_place_of_a_file_is_named_with_its_remedy(tmp_path, saved, name):
    model = shutil.copytree(saved, tmp_path / "model")
    if name == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    (model / name).write_text(POINTER)
    assert f"{model / name}: a pointer of Git LFS" in refused(model)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin"])
def test_a_pointer_in_place_of_a_shard_or_of_their_index_is_named(tmp_path, form):
    model = save(peer(), tmp_path / "model", form)
    shard = sorted(model.glob("*-of-*"))[-1]
    content = shard.read_bytes()
    shard.write_text(POINTER)
    assert f"{shard}: a pointer of Git LFS" in refused(model)
    shard.write_bytes(content)
    open_model(str(model))
    (index,) = model.glob("*.index.json")
    index.write_text(POINTER)
    assert f"{index}: a pointer of Git LFS" in refused(model)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_a_pointer_in_place_of_a_file_of_gpt2s_tokenizer_is_named(tmp_path, name):
    for file in ("vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / name).write_text(POINTER)
    assert f"{tmp_path / name}: a pointer of Git LFS" in refused(tmp_path, load_tokenizer)


def test_a_pointer_in_place_of_jaxformers_weights_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/0.npz").write_text(POINTER)
    assert f"{tmp_path / 'model/0.npz'}: a pointer of Git LFS" in refused(tmp_path)
