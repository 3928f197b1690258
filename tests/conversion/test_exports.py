"""Other programs, used as documented, generate the same tokens from our exports as our code does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers as hf
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import codegen_jax
from codegen_jax.conversion.convert import convert
from codegen_jax.data.probe import CODE, RARE
from codegen_jax.data.tokenizer import (
    END_OF_TEXT,
    WHITESPACE_TOKENS,
    BpeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from codegen_jax.data.train_tokenizer import train_sentencepiece
from codegen_jax.inference.generator import Completion
from codegen_jax.weights import huggingface
from codegen_jax.weights.tokenizer_files import tokenizer_files
from tests.conversion import documented_use
from tests.conversion.documented_use import Use, use
from tests.data.foreign import FOREIGN, sentencepiece
from tests.peers import peer, save

ROOT = Path(__file__).parents[2]
ROWS, POSITIONS, NEW = 650, 128, 12
PROMPTS = [
    "def f",
    "class Stack:\n    def push(self, item):\n        self.items",
    "import os\n\n\ndef main(argv):\n  ",
    "x",
]
HARD = [
    *CODE,
    *RARE,
    *(f"x{token}y" for token in WHITESPACE_TOKENS),
    " " * 35 + "x" + "\t" * 12 + "x" + " " * 31,
    "x , y . don't  can 't !",
]
SPECIAL = [f"a{END_OF_TEXT}b", f"  {END_OF_TEXT}  x", END_OF_TEXT]

TOKENIZERS = {
    "ours": lambda texts: train_sentencepiece(texts, vocab_size=512),
    **{name: FOREIGN[name] for name in ("whitespace tokens", "Llama 3's rules", "space prefix")},
    "Llama's sentencepiece": FOREIGN["Llama's sentencepiece"],
}
KINDS = [(name, "hf") for name in TOKENIZERS] + [("ours", "gptj"), ("whitespace tokens", "gptj")]
CTRANSLATE2 = [kind for kind in KINDS if kind[1] == "hf"]  # for GPT-J, it requires a token for every embedding row


@dataclass
class Export:
    """An exported model, and our own results for it."""

    folder: Path
    tokenizer: Tokenizer
    eos: str
    texts: list[str]
    tokens: list[list[int]]
    completions: list[str]

    def task(self) -> dict:
        ids = [self.tokenizer.encode(text) for text in self.texts]
        return dict(folder=str(self.folder), prompts=PROMPTS, new=NEW, texts=self.texts, ids=ids)

    def check(self, use: Use) -> None:
        expected = [self.tokenizer.encode(text) for text in self.texts]
        assert use.inputs == ["attention_mask", "input_ids"]
        assert use.eos == use.pad == self.tokenizer.eos_id and use.max_length == POSITIONS
        assert use.ids == expected and use.again == expected
        for ids, *texts in zip(expected, use.texts[::2], use.texts[1::2]):
            text = self.tokenizer.decode(ids)
            assert texts == [text, text.replace(self.eos, "")]
        assert use.alone == self.tokens and use.batch == self.tokens
        if use.fast:  # the pipeline can't keep transformers 4's slow tokenizers from adding spaces around added tokens
            assert use.completions == self.completions and use.batched == self.completions
        assert use.warnings == []


def save_model(folder: Path, tokenizer: Tokenizer) -> None:
    """Save a model that never generates ids without a token, or invalid UTF-8, which programs decode differently."""
    model = peer(seed=3, vocab_size=ROWS, n_positions=POSITIONS)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.vocab_size :] = -1e4
        model.lm_head.bias[[id for id in range(tokenizer.vocab_size) if "\ufffd" in tokenizer.decode([id])]] = -1e4
    save(model, folder, tokenizer=tokenizer)


def greedy(folder: Path, prompts: list[str]) -> list[Completion]:
    return codegen_jax.load(str(folder), dtype="float32").complete(prompts, max_new_tokens=NEW, temperature=0)


def export(folder: Path, tokenizer: Tokenizer, to: str) -> Export:
    save_model(folder / "source", tokenizer)
    convert(str(folder / "source"), str(folder / to), to=to)
    ours = greedy(folder / "source", PROMPTS)
    texts, eos = [*HARD, *SPECIAL], END_OF_TEXT
    if isinstance(tokenizer, SentencePieceTokenizer):  # it reads no special tokens in prompts, but transformers does
        eos = tokenizer._processor.id_to_piece(tokenizer.eos_id)
        texts = [text for text in texts if eos not in text]
    tokens, completions = [result.token_ids for result in ours], [result.completion for result in ours]
    return Export(folder / to, tokenizer, eos, texts, tokens, completions)


@pytest.fixture(scope="module")
def exports(tmp_path_factory, texts) -> dict[tuple[str, str], Export]:
    tokenizers = {name: make(texts[::4]) for name, make in TOKENIZERS.items()}
    folder = tmp_path_factory.mktemp("exports")
    return {(name, to): export(folder / f"{name} {to}", tokenizers[name], to) for name, to in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=" as ".join)
def test_the_newest_transformers_generates_the_same_tokens(exports, kind):
    export = exports[kind]
    export.check(use(**export.task()))


@pytest.fixture(scope="module")
def transformers_4(exports) -> dict:
    """The results for all exports, and for CTranslate2's conversions, in an environment with transformers 4."""
    environment = ROOT / ".pytest_cache/transformers-4.57.1"
    if not environment.exists():
        packages = ["transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub<1"]  # the rest is shared with ours
        partial = environment.with_name(environment.name + ".partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *packages]
        subprocess.run(pip, check=True)
        partial.rename(environment)
    task = {
        "uses": [export.task() for export in exports.values()],
        "folders": [str(exports[kind].folder) for kind in CTRANSLATE2],
        "ctranslate2": [PROMPTS, NEW],
    }
    run = subprocess.run(
        [sys.executable, documented_use.__file__],
        input=json.dumps(task),
        env=os.environ | {"PYTHONPATH": str(environment)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("kind", KINDS, ids=" as ".join)
def test_transformers_4_generates_the_same_tokens(exports, transformers_4, kind, fast):
    export = exports[kind]
    uses = [Use(**answer) for answer in transformers_4["uses"]]
    (use,) = (use for use in uses if use.folder == str(export.folder) and use.fast == fast)
    assert use.version == "4.57.1"
    export.check(use)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CTRANSLATE2, ids=" as ".join)
def test_ctranslate2_generates_the_same_tokens(exports, transformers_4, kind):
    export = exports[kind]
    assert transformers_4["ctranslate2"][str(export.folder)] == export.tokens


def documents(tokenizer_json: bytes, texts: list[str]) -> list[list[int]]:
    """Ids of texts, with special tokens read as plain text."""
    tokenizer = hf.Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


LOSSLESS = dict(
    model_type="bpe",
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
)
CONVERTIBLE = {
    "Llama's": dict(byte_fallback=True),
    "no space before": dict(byte_fallback=True, add_dummy_prefix=False),
    "symbols": dict(
        byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=["<fim>", "<fim_end>", "\t", "    "]
    ),
    "controls": dict(byte_fallback=True, control_symbols=["[CLS]", "<mask>"], pad_id=3, bos_id=-1),
    "no bytes": dict(add_dummy_prefix=False),
    "no eos": dict(byte_fallback=True, eos_id=-1),
}
NOT_CONVERTIBLE = {
    "sentencepiece's defaults": {},
    "unigram": LOSSLESS | dict(model_type="unigram", byte_fallback=True),
    "NFKC": LOSSLESS | dict(normalization_rule_name="nmt_nfkc", byte_fallback=True),
    "symbols behind a space": LOSSLESS | dict(byte_fallback=True, user_defined_symbols=["\n"]),
    "spaces behind words": LOSSLESS | dict(byte_fallback=True, treat_whitespace_as_suffix=True),
}


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_any_lossless_sentencepiece_bpe_is_converted_exactly(texts, name):
    tokenizer = sentencepiece(texts[::4], **LOSSLESS | CONVERTIBLE[name])
    files = tokenizer_files(tokenizer, POSITIONS)
    whole = [*HARD, *SPECIAL, "<fim>x<fim_end>", "\u2581", "\u2581\u2581x \u2581 y\u2581", "", " ", *texts[1::4]]
    assert documents(files["tokenizer.json"], whole) == tokenizer.encode_batch(whole, special_tokens=False)
    named = json.loads(files["tokenizer_config.json"])
    assert named["eos_token"] == named["pad_token"] == (None if name == "no eos" else "</s>")


@pytest.mark.parametrize("name", NOT_CONVERTIBLE)
def test_a_sentencepiece_model_that_cannot_be_converted_causes_a_warning_before_weights_are_written(
    tmp_path, texts, caplog, monkeypatch, name
):
    tokenizer = sentencepiece(texts[::4], **NOT_CONVERTIBLE[name])
    save(peer(vocab_size=ROWS), tmp_path / "source", tokenizer=tokenizer)
    messages = []
    write = huggingface.write_tensors
    monkeypatch.setattr(huggingface, "write_tensors", lambda *args: (messages.extend(caplog.messages), write(*args)))
    convert(str(tmp_path / "source"), str(tmp_path / "hf"), to="hf", proof="numpy")
    (line,) = (line for line in messages if line.startswith("tokenizer: "))
    assert "cannot be converted exactly to a tokenizer.json for transformers: '" in line and "\n" not in line
    assert not [file.name for file in (tmp_path / "hf").glob("*token*")]
    kept = load_tokenizer(tmp_path / "hf" / "sentencepiece.model")
    assert kept.fingerprint == tokenizer.fingerprint


def test_a_post_processor_that_adds_tokens_is_not_exported(tmp_path, texts):
    plain = FOREIGN["GPT-2's rules"](texts[::4])
    tokenizer = hf.Tokenizer.from_str(plain.files()["tokenizer.json"].decode())
    special = [(END_OF_TEXT, plain.eos_id)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{END_OF_TEXT} $A", special_tokens=special)
    for name, content in tokenizer_files(BpeTokenizer(tokenizer.to_str()), POSITIONS).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "codegen"}))
    assert AutoTokenizer.from_pretrained(tmp_path)("def f")["input_ids"] == plain.encode("def f")


def test_a_float16_export_loads_in_float16_and_generates_the_same_tokens(tmp_path, texts):
    tokenizer = FOREIGN["whitespace tokens"](texts[::4])
    save_model(tmp_path / "source", tokenizer)
    convert(str(tmp_path / "source"), str(tmp_path / "hf"), to="hf", dtype="float16")
    (ours,) = greedy(tmp_path / "hf", PROMPTS[:1])
    inputs = AutoTokenizer.from_pretrained(tmp_path / "hf")(PROMPTS[0], return_tensors="pt")
    for dtype, loaded in (("auto", torch.float16), (torch.float32, torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=dtype)
        tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert model.dtype == loaded and tokens.tolist() == ours.token_ids


def test_generation_can_fill_the_context_window(exports):
    export = exports["whitespace tokens", "hf"]
    tokenizer = AutoTokenizer.from_pretrained(export.folder)
    model = AutoModelForCausalLM.from_pretrained(export.folder)
    prompt = export.tokenizer.decode(export.tokenizer.encode(CODE[0] * 20)[: POSITIONS - NEW])
    (ours,) = greedy(export.folder, [prompt])
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, POSITIONS - NEW :]
    assert tokens.tolist() == ours.token_ids
    assert len(tokenizer(CODE[0] * 20, truncation=True)["input_ids"]) == POSITIONS
