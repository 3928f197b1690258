"""Folders written by transformers, in every storage format, converted to ours and back, and loaded by transformers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import CodeGenConfig as HuggingFaceConfig

import codegen_jax
from codegen_jax.conversion.convert import convert
from codegen_jax.errors import UserError
from codegen_jax.weights.huggingface import open_huggingface
from tests.peers import FORMS, logits, peer, save, state, tiny_bpe

PROMPTS = ["def f(x):\n    return", "class A:", "import numpy as np\n\n\ndef mean(values):"]


def tokens(rows=2, length=20):
    return np.random.default_rng(0).integers(0, 290, (rows, length))


def assert_same_bytes(folder, model):
    """Assert that the folder contains exactly the model's tensors, bit for bit."""
    written = {}
    for file in folder.glob("model*.safetensors"):
        written |= load_file(file)
    expected = model.state_dict()
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype and torch.equal(
            written[name].view(torch.uint8), tensor.view(torch.uint8)
        ), name


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_converts_verifies_generates_like_transformers_and_converts_back(tmp_path, bpe, form):
    model = peer(vocab_size=300)
    save(model, tmp_path / "hf", form, bpe, buffers=True)
    summary = convert(str(tmp_path / "hf"), str(tmp_path / "ours"), proof="numpy")
    assert summary.parameters == sum(p.numel() for p in model.parameters()) and summary.dtypes == ["float32"]
    assert summary.agreement is not None and summary.agreement.difference < 1e-5 and summary.agreement.greedy == 1

    for name in ("ours", "hf"):
        ours = codegen_jax.load(str(tmp_path / name))
        for completion in ours.complete(PROMPTS, max_new_tokens=12, temperature=0):
            prompt = torch.tensor([bpe.encode(completion.prompt)])
            no_token = list(range(bpe.vocab_size, 300))
            theirs = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
                suppress_tokens=no_token, eos_token_id=bpe.eos_id, pad_token_id=bpe.eos_id,
            )  # fmt: skip
            new = theirs[0, prompt.shape[1] :].tolist()
            assert completion.token_ids == (new[: new.index(bpe.eos_id)] if bpe.eos_id in new else new)

    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf", proof="torch")
    assert_same_bytes(tmp_path / "back", model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_16_bit_weights_keep_every_bit(tmp_path, form, dtype):
    model = peer(dtype=dtype)
    save(model, tmp_path / "hf", form)
    convert(str(tmp_path / "hf"), str(tmp_path / "ours"), proof="numpy")
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")
    assert_same_bytes(tmp_path / "back", model)
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("n_embd", "n_head", "rotary_dim"),
    [
        pytest.param(1024, 16, 32, id="350m"),
        pytest.param(2560, 32, 64, id="2b"),
        pytest.param(4096, 16, 64, id="6b", marks=pytest.mark.slow),
        pytest.param(6144, 24, 64, id="16b", marks=pytest.mark.slow),
    ],
)
def test_a_layer_of_each_published_width_survives_a_round_trip(tmp_path, n_embd, n_head, rotary_dim):
    model = peer(dtype=torch.bfloat16, n_layer=1, n_embd=n_embd, n_head=n_head, rotary_dim=rotary_dim, vocab_size=128)
    save(model, tmp_path / "hf")
    summary = convert(str(tmp_path / "hf"), str(tmp_path / "ours"), proof="numpy")
    assert summary.agreement is not None and summary.agreement.difference < 1e-3
    shutil.rmtree(tmp_path / "hf")
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")
    assert_same_bytes(tmp_path / "back", model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_loads_our_exports_unchanged(tmp_path, bpe, texts, dtype):
    model = peer(dtype=dtype)
    save(model, tmp_path / "hf", tokenizer=bpe)
    convert(str(tmp_path / "hf"), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")
    before, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("hf", "back"))
    assert again.dtype == dtype and type(again) is type(model)
    np.testing.assert_array_equal(logits(again, tokens()), logits(before, tokens()))
    assert again.config.eos_token_id == again.generation_config.eos_token_id == bpe.eos_id
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [tokenizer(text)["input_ids"] for text in texts] == [bpe.encode(text) for text in texts]
    assert tokenizer.eos_token_id == bpe.eos_id


def test_whitespace_tokens_are_exported(tmp_path):
    tokenizer = tiny_bpe()
    save(peer(vocab_size=320), tmp_path / "hf", tokenizer=tokenizer)
    with_whitespace = type(tokenizer)(tokenizer.files()["tokenizer.json"].decode(), whitespace_tokens=True)
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), to="hf", tokenizer=with_whitespace)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("    return x", "\t\t\tx", " " * 40 + "x", "a  b"):
        assert theirs(text)["input_ids"] == with_whitespace.encode(text)
        assert theirs.decode(with_whitespace.encode(text)) == text


def test_a_sentencepiece_tokenizer_encodes_the_same_in_transformers(tmp_path, tokenizer, texts):
    save(peer(vocab_size=512), tmp_path / "hf")
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), to="hf", tokenizer=tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    wild = ["    \n\tx", "naïve 日本語 🙂", "a  b   c\t\t\td", " x", "\n\n\n", "x\r\n", "\0", "x = 12345"]
    for text in wild + [text for text in texts if "<|endoftext|>" not in text and "\u2581" not in text]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_id == theirs.eos_token_id


def test_transformers_gptj_computes_the_same_logits(tmp_path):
    model = peer(n_embd=64, n_head=8)
    save(model, tmp_path / "hf")
    convert(str(tmp_path / "hf"), str(tmp_path / "gptj"), to="gptj", proof="numpy")
    gptj = AutoModelForCausalLM.from_pretrained(tmp_path / "gptj")
    assert type(gptj).__name__ == "GPTJForCausalLM"
    difference = np.abs(logits(gptj, tokens()) - logits(model, tokens())).max()
    assert difference < 1e-5 * np.abs(logits(model, tokens())).max()


def regrouped(tensors, config, mp_num):
    """Tensors with qkv_proj in mp_num groups, by definition: group, then q, v, k, then head, then channel."""
    H, K, D = config.n_head, config.n_embd // config.n_head, config.n_embd
    for i in range(config.n_layer):
        name = f"transformer.h.{i}.attn.qkv_proj.weight"
        rows = {}
        for group, letter, head in np.ndindex(4, 3, H // 4):
            start = ((group * 3 + letter) * (H // 4) + head) * K
            rows[letter, group * (H // 4) + head] = tensors[name][start : start + K]
        share = H // mp_num
        order = [
            (letter, group * share + head) for group in range(mp_num) for letter in range(3) for head in range(share)
        ]
        tensors = tensors | {name: torch.cat([rows[key] for key in order]).reshape(3 * D, D)}
    return tensors


def test_eight_groups_are_assumed_only_if_requested(tmp_path):
    model = peer(n_embd=64, n_head=8)
    folder = save(model, tmp_path / "hf", "bin")
    torch.save(regrouped(model.state_dict(), model.config, 8), folder / "pytorch_model.bin")
    convert(str(folder), str(tmp_path / "eight"), mp_num=8, proof="numpy")
    convert(str(tmp_path / "eight"), str(tmp_path / "four"), to="hf")
    assert_same_bytes(tmp_path / "four", model)  # the layout that transformers reads
    convert(str(tmp_path / "eight"), str(tmp_path / "eight_hf"), to="hf", mp_num=8, proof="numpy")
    assert torch.equal(
        load_file(tmp_path / "eight_hf/model.safetensors")["transformer.h.1.attn.qkv_proj.weight"],
        torch.load(folder / "pytorch_model.bin")["transformer.h.1.attn.qkv_proj.weight"],
    )
    assert open_huggingface(tmp_path / "eight_hf").mp_num == 8  # it is recorded in our config.json
    convert(str(folder), str(tmp_path / "wrong"))
    convert(str(tmp_path / "wrong"), str(tmp_path / "wrong_hf"), to="hf")
    with pytest.raises(AssertionError):
        assert_same_bytes(tmp_path / "wrong_hf", model)


def edit_config(folder, without=(), **fields):
    path = folder / "config.json"
    written = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in written.items() if name not in without}))


def test_fields_often_wrong_in_configs_are_corrected_with_one_warning_each(tmp_path, bpe, caplog):
    folder = save(peer(dtype=torch.float16), tmp_path / "hf", tokenizer=bpe)
    edit_config(folder, eos_token_id=2, bos_token_id=1, vocab_size=51200, dtype="float32")
    caplog.clear()
    weights = open_huggingface(folder)
    assert weights.config.vocab_size == 300 and weights.tokenizer.eos_id == bpe.eos_id
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and all(record.levelname == "WARNING" for record in caplog.records)
    assert "eos_token_id 2" in lines[2] and "51200" in lines[0] and "float32" in lines[1]
    completion = codegen_jax.load(str(folder)).complete(["x"], max_new_tokens=30, temperature=50.0, top_p=1.0)[0]
    assert max(completion.token_ids) < bpe.vocab_size


def test_missing_fields_have_transformers_defaults(tmp_path):
    folder = save(peer(n_head=16, n_embd=64), tmp_path / "hf")
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    del fields["n_head"], fields["layer_norm_epsilon"], fields["activation_function"], fields["tie_word_embeddings"]
    path.write_text(json.dumps(fields))
    assert open_huggingface(folder).config.n_head == 16


def test_head_dim_of_codegen2_is_read(tmp_path):
    model = peer(n_embd=32, n_head=4)
    folder = save(model, tmp_path / "hf", "bin")
    tensors = model.state_dict()
    for i in range(2):  # heads with 12 channels although n_embd / n_head is 8
        tensors[f"transformer.h.{i}.attn.qkv_proj.weight"] = torch.randn(3 * 48, 32)
        tensors[f"transformer.h.{i}.attn.out_proj.weight"] = torch.randn(32, 48)
    torch.save(tensors, folder / "pytorch_model.bin")
    edit_config(folder, head_dim=12)
    summary = convert(str(folder), str(tmp_path / "ours"), proof="numpy")
    assert summary.parameters == sum(t.numel() for t in tensors.values())
    with pytest.raises(UserError, match="head_dim"):
        convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gptj"}, ["gptj", "codegen"]),
        ({"model_type": None}, ["model_type", "only codegen"]),
        ({"activation_function": "relu"}, ["activation_function", "relu", "gelu_new"]),
        ({"activation_function": None}, ["activation_function is null", "gelu_new"]),
        ({"n_inner": 77}, ["n_inner", "77", "128"]),
        ({"n_inner": True}, ["n_inner", "whole number"]),
        ({"n_layer": "two"}, ["n_layer", "two", "whole number"]),
        ({"n_layer": True}, ["n_layer", "True", "whole number"]),
        ({"n_embd": 32.0}, ["n_embd", "32.0", "whole number"]),
        ({"vocab_size": "many"}, ["vocab_size", "many"]),
        ({"vocab_size": -1}, ["vocab_size", "-1", "positive"]),
        ({"layer_norm_epsilon": "small"}, ["layer_norm_epsilon", "small", "a number"]),
        ({"layer_norm_epsilon": True}, ["layer_norm_epsilon", "True", "a number"]),
        ({"layer_norm_epsilon": float("nan")}, ["layer_norm_epsilon", "nan"]),
        ({"layer_norm_epsilon": -1.0}, ["layer_norm_epsilon", "-1.0"]),
        ({"head_dim": 8.5}, ["head_dim", "8.5"]),
        ({"head_dim": 16}, ["head_dim is 16", "transformers", "n_embd / n_head = 8", "remove it"]),
        ({"mp_num": "4"}, ["mp_num", "'4'"]),
        ({"mp_num": None}, ["mp_num is null; set it to 4"]),
        ({"rotary_dim": None}, ["rotary_dim is null; set it to a whole number: leading channels of each head"]),
        ({"rotary_dim": 9}, ["rotary_dim: must be even", "got 9"]),
        ({"rotary_dim": 10}, ["rotary_dim: must be", "at most head_dim = 8, got 10"]),
        ({"rotary_dim": 0}, ["rotary_dim: must be", "got 0"]),
        ({"n_head": 5}, ["n_head: 5 does not divide n_embd = 32"]),
        ({"n_positions": 0}, ["n_positions: must be positive, got 0"]),
        ({"n_positions": None}, ["n_positions is null; set it to a whole number: longest context"]),
        ({"vocab_size": None}, ["vocab_size is null"]),
        ({"layer_norm_epsilon": None}, ["layer_norm_epsilon is null; set it to a number"]),
        ({"hidden_size": None}, ["hidden_size is null"]),
        ({"hidden_size": 48}, ["n_embd is 32 and hidden_size is 48"]),
        ({"max_position_embeddings": 128}, ["n_positions is 64 and max_position_embeddings is 128"]),
        ({"num_hidden_layers": "2"}, ["num_hidden_layers", "whole number"]),
        ({"layer_norm_epsilon": 10**400}, ["layer_norm_epsilon: ", "in the range of floats, got 100000"]),
        ({"n_layer": 3}, ["n_layer is 3, but 2 in the weights"]),
        ({"n_layer": 1}, ["n_layer is 1, but 2 in the weights"]),
        (
            {"n_layer": 10**18},
            ["n_layer is 1000000000000000000, but 2 in the weights"],
        ),  # no list of layers is built
        ({"n_embd": 64}, ["n_embd is 64, but 32 in the weights"]),
        ({"n_embd": 10**400}, ["but 32 in the weights"]),
        ({"text_config": {"n_layer": 2}}, ["text_config, which transformers' CodeGen ignores"]),
        ({"mp_num": 0}, ["config.json: mp_num: 0 does not divide the 4 heads"]),
        ({"mp_num": 3}, ["config.json: mp_num: 3 does not divide the 4 heads"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        ({"tie_word_embeddings": 0}, ["tie_word_embeddings", "true or false"]),
    ],
)
def test_an_unsupported_or_invalid_config_field_is_rejected(tmp_path, fields, words):
    folder = save(peer(), tmp_path / "hf")
    edit_config(folder, **fields)
    with pytest.raises(UserError) as error:
        open_huggingface(folder)
    assert all(word in str(error.value) for word in [*words, "config.json"]), error.value
    assert "model." not in str(error.value).split("config.json", 1)[1]  # our own field names do not appear


def test_a_config_is_read_as_utf_8_with_or_without_a_bom_in_any_locale(tmp_path):
    folder = save(peer(), tmp_path / "hf", "sharded safetensors")
    edit_config(folder, _name_or_path="modèle")
    for path in (folder / "config.json", *folder.glob("*.index.json")):
        path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding="utf-8-sig")
    script = "import sys; from codegen_jax.conversion.convert import convert; convert(*sys.argv[1:], proof='numpy')"
    posix = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "ours")], env=os.environ | posix, check=True
    )


def test_a_config_in_another_encoding_is_rejected(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    path = folder / "config.json"
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(UserError, match=f"^{path}: not UTF-8 text"):
        open_huggingface(folder)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", "auto", None])
def test_a_dtype_that_matches_the_weights_causes_no_warning(tmp_path, dtype, caplog):
    folder = save(peer(dtype=torch.float16), tmp_path / "hf")
    edit_config(folder, dtype=dtype)
    caplog.clear()
    open_huggingface(folder)
    assert not caplog.records


def test_mp_num_can_override_a_wrong_config(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    edit_config(folder, mp_num=3)
    assert open_huggingface(folder, mp_num=4).mp_num == 4
    with pytest.raises(UserError, match=r"^mp_num: 3 does not divide"):
        open_huggingface(folder, mp_num=3)


def test_a_config_without_model_type_is_rejected(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    edit_config(folder, without=["model_type"])
    with pytest.raises(UserError, match=r'config.json: no model_type; .* add "model_type": "codegen"'):
        open_huggingface(folder)


ALIASES = HuggingFaceConfig.attribute_map.items()


@pytest.mark.parametrize(
    ("fields", "without"),
    [
        *[({alias: None}, [name]) for alias, name in ALIASES],
        *[({alias: None}, []) for alias, _ in ALIASES],
        ({alias: None for alias, _ in ALIASES}, [name for _, name in ALIASES]),
        ({"n_ctx": 32}, []),
        ({"n_ctx": 32}, ["n_positions"]),
        ({"max_position_embeddings": 40}, ["n_positions"]),
        ({"n_inner": None}, []),
        ({"n_inner": 128}, []),
        ({"bos_token_id": None, "eos_token_id": None, "torch_dtype": None, "dtype": None}, []),
        ({"rope_theta": 7.0, "intermediate_size": 7, "head_dim": 8}, []),
        ({"head_dim": None}, []),
        ({}, ["layer_norm_epsilon", "n_ctx", "activation_function", "tie_word_embeddings"]),
    ],
)
def test_every_field_is_read_as_in_transformers(tmp_path, fields, without):
    folder = save(peer(), tmp_path / "hf")
    written = json.loads((folder / "config.json").read_text())
    names = dict(ALIASES)
    fields = {
        name: written[names[name]] if value is None and name in names else value for name, value in fields.items()
    }
    edit_config(folder, **fields, without=without)
    theirs, ours = AutoConfig.from_pretrained(folder), open_huggingface(folder).config
    for name in ("n_layer", "n_embd", "n_head", "rotary_dim", "n_positions", "vocab_size", "layer_norm_epsilon"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_an_error_uses_the_fields_name_in_the_file(tmp_path):
    folder = save(peer(), tmp_path / "hf")
    edit_config(folder, num_attention_heads=5, without=["n_head"])
    with pytest.raises(UserError, match=r"config.json: num_attention_heads: 5 does not divide n_embd = 32"):
        open_huggingface(folder)


def test_a_tokenizer_with_more_ids_than_the_embedding_is_rejected(tmp_path, bpe):
    folder = save(peer(vocab_size=200), tmp_path / "hf", tokenizer=bpe)
    with pytest.raises(
        UserError,
        match=r"290 ids, but the network only 200; use the tokenizer .*: codegen-jax convert .* NEW --tokenizer T",
    ):
        codegen_jax.load(str(folder))


def test_a_model_without_a_tokenizer_does_not_generate(tmp_path):
    with pytest.raises(UserError, match=r"add one with codegen-jax convert .* NEW --tokenizer T"):
        codegen_jax.load(str(save(peer(), tmp_path / "hf")))


def test_the_helper_state_matches_the_saved_folder(tmp_path):
    model = peer()
    weights = open_huggingface(save(model, tmp_path / "hf"))
    for name, array in state(model).items():
        np.testing.assert_array_equal(weights.tensors[name][:], array)
