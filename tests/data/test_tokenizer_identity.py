"""Tokenizers that encode alike have the same fingerprint, however they are stored; others have different ones."""

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
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    parts["added_tokens"] += [
        {"id": 400 + number, "content": token, "special": number == 0, **flags}
        for number, token in enumerate(("<|im_end|>", "    "))
    ]
    return parts


def exported(tokenizer, folder):
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer, 2048).items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def test_a_vocabulary_in_one_file_or_in_several_has_the_same_fingerprint(tmp_path, parts):
    whole = BpeTokenizer(json.dumps(parts))
    model = parts["model"]
    shuffled = dict(sorted(model["vocab"].items()))
    (tmp_path / "vocab.json").write_text(json.dumps(shuffled, ensure_ascii=False, indent=1))
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\n" + "\r\n".join(" ".join(pair) for pair in model["merges"]))
    added = {token["content"]: token["id"] for token in parts["added_tokens"] if token["id"] >= 400}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|im_end|>"]}')
    several = load_tokenizer(tmp_path)
    assert several.fingerprint == whole.fingerprint and several.legacy_fingerprint != whole.legacy_fingerprint


def test_a_sentencepiece_model_and_its_export_have_the_same_fingerprint(tmp_path, tokenizer):
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
    "a space prefix": lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True),
    "no pre-tokenizer": lambda parts: parts["pre_tokenizer"].update(use_regex=False),
    "lowercase": lambda parts: parts.update(normalizer={"type": "Lowercase"}),
    "NFC": lambda parts: parts.update(normalizer={"type": "NFC"}),
    "spaces before an added token": lambda parts: parts["added_tokens"][-1].update(lstrip=True),
    "an added token that is a word": lambda parts: parts["added_tokens"][-1].update(single_word=True),
    "a special token made ordinary": lambda parts: parts["added_tokens"][-2].update(special=False),
    "a missing added token": lambda parts: parts["added_tokens"].pop(),
    "the text of an added token": lambda parts: parts["added_tokens"][-1].update(content="     "),
    "merges ignored for whole words": lambda parts: parts["model"].update(ignore_merges=True),
}
SAME_ENCODING = {"merges ignored for whole words"}  # each piece of a trained BPE results from its merges


@pytest.mark.parametrize("change", CHANGES)
def test_tokenizers_that_encode_differently_have_different_fingerprints(parts, change):
    changed = json.loads(json.dumps(parts))
    CHANGES[change](changed)
    assert changed != parts
    same = BpeTokenizer(json.dumps(changed)).fingerprint == BpeTokenizer(json.dumps(parts)).fingerprint
    assert same == (change in SAME_ENCODING)


def test_tokenizers_of_all_kinds_have_different_fingerprints(texts):
    tokenizers = {name: make(texts[::4]) for name, make in FOREIGN.items()}
    tokenizers |= {"another unigram": sentencepiece(texts[1::4])}
    assert len({tokenizer.fingerprint for tokenizer in tokenizers.values()}) == len(tokenizers)


@pytest.fixture
def legacy(tmp_path, token_folder, tokenizer):
    """Token files of an older version: the manifest contains a hash of the tokenizer's file."""
    folder = shutil.copytree(token_folder, tmp_path / "legacy")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    manifest["tokenizer"] = tokenizer.legacy_fingerprint
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_token_files_with_a_legacy_fingerprint_match_their_tokenizer_and_equal_ones(tmp_path, legacy, tokenizer, texts):
    files = TokenFiles(legacy)
    assert files.tokenizer().fingerprint == tokenizer.fingerprint
    assert files.made_with(tokenizer) and files.made_with(exported(tokenizer, tmp_path / "hf"))
    assert not files.made_with(tiny_bpe(texts, 400))


def test_a_preparation_with_a_legacy_fingerprint_resumes(tmp_path, texts, tokenizer):
    shard = write_shard(tmp_path / "a.jsonl", texts)
    prepare([shard], str(tmp_path / "whole"), tokenizer)
    record = json.loads((tmp_path / "whole/logs/arguments.json").read_text())
    for name in ("other", "legacy"):
        (tmp_path / name / "logs").mkdir(parents=True)
        recorded = {"tokenizer": tokenizer.legacy_fingerprint if name == "legacy" else "bpe-of-another"}
        (tmp_path / name / "logs/arguments.json").write_text(json.dumps(record | recorded))
    with pytest.raises(UserError, match="unfinished preparation with a different value of tokenizer"):
        prepare([shard], str(tmp_path / "other"), tokenizer)
    assert prepare([shard], str(tmp_path / "legacy"), tokenizer).tokens > 0


@pytest.mark.parametrize("name", ["Llama's sentencepiece"])
def test_exports_of_foreign_models_have_the_same_end_ids(tmp_path, texts, name):
    tokenizer = FOREIGN[name](texts[::4])
    again = exported(tokenizer, tmp_path / "hf")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.eos_id, again.end_ids) == (tokenizer.eos_id, tokenizer.end_ids)
