"""Tokenizer files of other programs and older versions are read, and exported for transformers."""

import json

import pytest
from transformers import AutoTokenizer

from codegen_jax.conversion.convert import convert
from codegen_jax.data.infill import TOKENS, infill_prompt, with_infill
from codegen_jax.data.tokenizer import BpeTokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.weights.open import open_model
from codegen_jax.weights.tokenizer_files import tokenizer_files
from tests.data.foreign import sentencepiece
from tests.peers import peer, save

TEXTS = ["def f(x):\n    return x", "a  b <|endoftext|>", "\t\tx"]


def written(tokenizer, folder):
    for name, content in tokenizer_files(tokenizer, 64).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts["model"].update(merges=[" ".join(pair) for pair in parts["model"]["merges"]]),
        lambda parts: parts["model"].pop("type"),
        lambda parts: parts.pop("normalizer"),
        lambda parts: parts.pop("post_processor"),
        lambda parts: parts["pre_tokenizer"].pop("use_regex"),
    ],
    ids=["merges as text", "no type", "no normalizer", "no post_processor", "no use_regex"],
)
def test_files_of_older_versions_are_exported(tmp_path, bpe, change):
    parts = json.loads(bpe.files()["tokenizer.json"])
    change(parts)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/tokenizer.json").write_text(json.dumps(parts))
    (tmp_path / "out").mkdir()
    older = load_tokenizer(tmp_path / "source")
    theirs = AutoTokenizer.from_pretrained(written(older, tmp_path / "out"))
    assert [theirs(text)["input_ids"] for text in TEXTS] == [bpe.encode(text) for text in TEXTS]
    assert older.fingerprint == bpe.fingerprint


def test_templates_and_special_tokens_are_kept_without_a_tokenizer_config(tmp_path, bpe):
    source = save(peer(), tmp_path / "hf", tokenizer=bpe)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool.jinja").write_text("{{ tools }}")
    (source / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    convert(str(source), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs.chat_template == {"default": "{{ messages }}", "tool": "{{ tools }}"} and theirs.pad_token == "!"
    assert theirs.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tokenizer_class": None}, None),
        ({"tokenizer_class": "TokenizersBackend"}, "PreTrainedTokenizerFast"),  # unknown to transformers 4
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "PreTrainedTokenizerFast"),
    ],
)
def test_tokenizer_class_names_work_in_all_versions(bpe, settings, expected):
    tokenizer = BpeTokenizer(
        bpe.files()["tokenizer.json"].decode(), metadata={"tokenizer_config.json": json.dumps(settings).encode()}
    )
    config = json.loads(tokenizer_files(tokenizer, 64)["tokenizer_config.json"])
    assert config == {"tokenizer_class": expected, "model_input_names": ["input_ids", "attention_mask"]}


def test_tokens_added_only_by_tokenizer_config_are_read(tmp_path, bpe):
    parts = json.loads(bpe.files()["tokenizer.json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in parts["merges"]))
    added = {str(290 + n): {"content": token} for n, token in enumerate(("<|im_end|>", "    "))}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"added_tokens_decoder": added, "eos_token": {"content": "<|im_end|>"}, "tokenizer_class": "GPT2Tokenizer"}
        )
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("x<|im_end|>    y")[1:3] == [290, 291]
    assert (tokenizer.eos_id, tokenizer.end_ids) == (0, (0, 290))


def test_ignored_settings_are_logged(tmp_path, bpe, caplog):
    save(peer(), tmp_path / "hf", tokenizer=bpe)
    (tmp_path / "hf/tokenizer_config.json").write_text('{"eos_token": "<|nowhere|>"}')
    parts = json.loads(bpe.files()["tokenizer.json"])
    piece, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, text],
        "pair": [],
        "special_tokens": special,
    }
    parts["post_processor"]["pair"] = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(parts))
    tokenizer = load_tokenizer(tmp_path / "hf")
    assert tokenizer.encode("def") == bpe.encode("def")
    assert "ignoring special tokens that are not in the vocabulary: <|nowhere|>" in caplog.text
    assert "tokens that transformers adds before or after each text are not added here" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer_config.json",
            '{"extra_special_tokens": "def"}',
            "extra_special_tokens must be a list of tokens, got",
        ),
        (
            "tokenizer_config.json",
            '{"additional_special_tokens": 7}',
            "additional_special_tokens must be a list of tokens, got",
        ),
        ("chat_template.jinja", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("generation_config.json", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
            "no token to end documents with",
        ),
    ],
)
def test_invalid_files_are_reported_by_name(tmp_path, bpe, file, content, message):
    save(peer(), tmp_path / "hf", tokenizer=bpe)
    (tmp_path / "hf" / file).write_text(content)
    with pytest.raises(UserError) as error:
        open_model(str(tmp_path / "hf"))
    assert message in str(error.value) and str(tmp_path / "hf") in str(error.value)


def test_a_byte_order_mark_is_ignored(tmp_path, bpe):
    save(peer(), tmp_path / "hf", tokenizer=bpe)
    for file, content in (
        ("tokenizer_config.json", '{"eos_token": "!"}'),
        ("generation_config.json", '{"eos_token_id": 0}'),
    ):
        (tmp_path / "hf" / file).write_text("\ufeff" + content, encoding="utf-8")
    assert open_model(str(tmp_path / "hf")).generation_config["generation_config.json"] == {"eos_token_id": 0}


@pytest.mark.parametrize("kind", ["bpe", "bpe with its own config", "sentencepiece"])
def test_special_tokens_for_infilling_are_named_in_exports(tmp_path, bpe, tokenizer, kind):
    plain = tokenizer if kind == "sentencepiece" else bpe
    if kind == "bpe with its own config":
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
        plain = plain.with_file("tokenizer_config.json", json.dumps(config).encode())
    extended = with_infill(plain, "mixed")
    (tmp_path / "out").mkdir()
    theirs = AutoTokenizer.from_pretrained(written(extended, tmp_path / "out"))
    ids = [extended.id_of(token) for token in TOKENS]
    assert theirs.convert_tokens_to_ids(list(TOKENS)) == ids
    prefix, suffix, middle = TOKENS
    prompt = infill_prompt(extended, "def f(x):", "return x")
    assert theirs(f"{prefix}def f(x):{suffix}return x{middle}")["input_ids"] == prompt
    back = load_tokenizer(tmp_path / "out")
    assert infill_prompt(back, "def f(x):", "return x") == prompt and back.fingerprint == extended.fingerprint


def test_a_sentencepiece_model_without_eos_exports_no_eos_id(tmp_path, texts):
    tokenizer = sentencepiece(texts[::4], eos_id=-1)
    save(peer(vocab_size=600), tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(tokenizer.files()["tokenizer.model"])
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), to="hf")
    for name in ("config.json", "generation_config.json"):
        assert -1 not in json.loads((tmp_path / "out" / name).read_text()).values()
