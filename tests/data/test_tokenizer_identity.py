"""Tokenizers that encode alike share a fingerprint, whatever their files; others have different ones."""

import json
import shutil

import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.tokenizer import BpeTokenizer, SentencePieceTokenizer, load_tokenizer
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from codegen_jax.weights.tokenizer_files import tokenizer_files
from tests.conftest import write_shard
from tests.data.foreign import FOREIGN, sentencepiece
from tests.peers import tiny_bpe


@pytest.fixture(scope="module")
def parts(texts):
    """The tokenizer.json of a byte-level BPE with 400 ids and two added tokens."""
    parts = json.loads(tiny_bpe(texts, 400).files()["tokenizer.json"])
    habits = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    parts["added_tokens"] += [
        {"id": 400 + number, "content": token, "special": number == 0, **habits}
        for number, token in enumerate(("<|im_end|>", "    "))
    ]
    return parts


def exported(tokenizer, folder):
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer, 2048).items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def test_a_vocabulary_is_the_same_in_one_file_and_in_several(tmp_path, parts):
    whole = BpeTokenizer(json.dumps(parts))
    model = parts["model"]
    shuffled = dict(sorted(model["vocab"].items()))
    (tmp_path / "vocab.json").write_text(json.dumps(shuffled, ensure_ascii=False, indent=1))
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\n" + "\r\n".join(" ".join(pair) for pair in model["merges"]))
    added = {token["content"]: token["id"] for token in parts["added_tokens"] if token["id"] >= 400}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|im_end|>"]}')
    several = load_tokenizer(tmp_path)
    assert several.fingerprint == whole.fingerprint and several.former_fingerprint != whole.former_fingerprint


def test_a_sentencepiece_model_and_what_is_made_of_it_for_transformers_are_the_same(tmp_path, tokenizer):
    again = exported(tokenizer, tmp_path / "hf")
    assert isinstance(tokenizer, SentencePieceTokenizer) and isinstance(again, BpeTokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.extends(tokenizer) and tokenizer.extends(again)


CHANGES = {
    "the order of all merges": lambda parts: parts["model"]["merges"].reverse(),
    "the order of two rare merges": lambda parts: parts["model"]["merges"].append(parts["model"]["merges"].pop(-2)),
    "two pieces swapped": lambda parts: parts["model"]["vocab"].update(
        zip(list(parts["model"]["vocab"])[300:302], [301, 300])
    ),
    "a space before each text": lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True),
    "no words": lambda parts: parts["pre_tokenizer"].update(use_regex=False),
    "lower case": lambda parts: parts.update(normalizer={"type": "Lowercase"}),
    "NFC": lambda parts: parts.update(normalizer={"type": "NFC"}),
    "spaces before an added token": lambda parts: parts["added_tokens"][-1].update(lstrip=True),
    "an added token that is a word": lambda parts: parts["added_tokens"][-1].update(single_word=True),
    "a special token that is none": lambda parts: parts["added_tokens"][-2].update(special=False),
    "an added token less": lambda parts: parts["added_tokens"].pop(),
    "the text of an added token": lambda parts: parts["added_tokens"][-1].update(content="     "),
    "merges that whole words pass by": lambda parts: parts["model"].update(ignore_merges=True),
}
ALIKE = {"merges that whole words pass by"}  # each piece of a trained BPE results from its merges


@pytest.mark.parametrize("change", CHANGES)
def test_what_encodes_otherwise_is_another(parts, change):
    changed = json.loads(json.dumps(parts))
    CHANGES[change](changed)
    assert changed != parts
    same = BpeTokenizer(json.dumps(changed)).fingerprint == BpeTokenizer(json.dumps(parts)).fingerprint
    assert same == (change in ALIKE)


def test_tokenizers_of_all_kinds_are_told_apart(texts):
    made = {name: make(texts[::4]) for name, make in FOREIGN.items()}
    made |= {"another unigram": sentencepiece(texts[1::4])}
    assert len({tokenizer.fingerprint for tokenizer in made.values()}) == len(made)


@pytest.fixture
def former(tmp_path, token_folder, tokenizer):
    """Token files of an older version: the manifest holds a hash of the tokenizer's file."""
    folder = shutil.copytree(token_folder, tmp_path / "former")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    manifest["tokenizer"] = tokenizer.former_fingerprint
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_token_files_of_before_are_known_to_their_tokenizer_and_to_its_like(tmp_path, former, tokenizer, texts):
    files = TokenFiles(former)
    assert files.tokenizer().fingerprint == tokenizer.fingerprint
    assert files.are_of(tokenizer) and files.are_of(exported(tokenizer, tmp_path / "hf"))
    assert not files.are_of(tiny_bpe(texts, 400))


def test_a_preparation_of_before_goes_on(tmp_path, texts, tokenizer):
    shard = write_shard(tmp_path / "a.jsonl", texts)
    prepare([shard], str(tmp_path / "whole"), tokenizer)
    record = json.loads((tmp_path / "whole/logs/arguments.json").read_text())
    for name in ("other", "former"):
        (tmp_path / name / "logs").mkdir(parents=True)
        named = {"tokenizer": tokenizer.former_fingerprint if name == "former" else "bpe-of-another"}
        (tmp_path / name / "logs/arguments.json").write_text(json.dumps(record | named))
    with pytest.raises(UserError, match="unfinished preparation with other tokenizer"):
        prepare([shard], str(tmp_path / "other"), tokenizer)
    assert prepare([shard], str(tmp_path / "former"), tokenizer).tokens > 0


@pytest.mark.parametrize("name", ["Llama's sentencepiece"])
def test_models_of_others_end_documents_in_their_exports_as_they_do(tmp_path, texts, name):
    tokenizer = FOREIGN[name](texts[::4])
    again = exported(tokenizer, tmp_path / "hf")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.eos_id, again.end_ids) == (tokenizer.eos_id, tokenizer.end_ids)
