"""A fine-tuned model's special-token settings: read as in transformers, and kept in every conversion."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import codegen_jax
from codegen_jax.conversion.convert import convert
from codegen_jax.data.prepare import prepare
from codegen_jax.data.tokenizer import BpeTokenizer, load_tokenizer
from codegen_jax.errors import UserError
from codegen_jax.training.loop import train
from codegen_jax.weights.open import open_model
from tests.conftest import write_shard
from tests.peers import peer, save
from tests.runs import tiny_run

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
ENDS = [291, 292]
GENERATION = {"eos_token_id": ENDS, "pad_token_id": 293, "do_sample": False, "max_new_tokens": 7}
CARRIED = ("tokenizer_config.json", "chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt")


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json"])
def chat(request, tmp_path_factory, bpe):
    """A chat fine-tune with four extra tokens: two of them end a turn, and config.json's eos is one of the two."""
    folder = tmp_path_factory.mktemp("chat") / "hf"
    model = peer(vocab_size=300)
    model.config.eos_token_id, model.config.pad_token_id = 291, 293
    with torch.no_grad():  # both ends are frequent, and so is the end of a document, which is not in the list
        model.lm_head.bias[[*ENDS, bpe.eos_id]] += 4
    save(model, folder)
    added = {"<|im_start|>": 290, "<|im_end|>": 291, "<|stop|>": 292, "<pad>": 293}
    if request.param == "vocab.json":
        parts = json.loads(bpe.files()["tokenizer.json"])["model"]
        (folder / "vocab.json").write_text(json.dumps(parts["vocab"]))
        (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in parts["merges"]))
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        parts = json.loads(bpe.files()["tokenizer.json"])
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        parts["added_tokens"] += [{"id": id, "content": token, **flags} for token, id in added.items()]
        (folder / "tokenizer.json").write_text(json.dumps(parts, indent=2))
    config = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<|endoftext|>", "padding_side": "left"}
    config |= {"tokenizer_class": "CodeGenTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def test_metadata_survives_a_round_trip(tmp_path, chat):
    convert(str(chat), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), to="hf")
    convert(str(chat), str(tmp_path / "direct"), to="hf")
    convert(str(tmp_path / "direct"), str(tmp_path / "gptj"), to="gptj")
    before = AutoTokenizer.from_pretrained(chat)
    messages = [{"role": "user", "content": "def f(x):\n    return x"}]
    for name in ("back", "direct", "gptj"):
        folder = tmp_path / name
        for file in (chat / file for file in CARRIED if (chat / file).exists()):
            assert (folder / file.name).read_bytes() == file.read_bytes()
        assert json.loads((folder / "generation_config.json").read_text()) == GENERATION
        config = json.loads((folder / "config.json").read_text())
        assert config["eos_token_id"] == 291 and config["pad_token_id"] == 293
        after = AutoTokenizer.from_pretrained(folder)
        assert after.special_tokens_map == before.special_tokens_map and after.padding_side == "left"
        assert after.apply_chat_template(messages)["input_ids"] == before.apply_chat_template(messages)["input_ids"]
        batch = ["def f<|im_end|>x", "x  y\n"]
        assert after(batch, padding=True)["input_ids"] == before(batch, padding=True)["input_ids"]
        ours = load_tokenizer(folder)
        assert (
            ours.fingerprint == load_tokenizer(chat).fingerprint and ours.encode(batch[0]) == before(batch[0]).input_ids
        )


def test_every_eos_id_ends_a_completion_as_in_transformers(tmp_path, chat):
    convert(str(chat), str(tmp_path / "ours"))
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(chat), load_tokenizer(chat)
    no_token = list(range(tokenizer.vocab_size, 300))
    reasons = set()
    for name in (chat, tmp_path / "ours"):
        ours = codegen_jax.load(str(name))
        prompts = [f"def f{n}({'x' * (n % 5)}):\n    return" for n in range(12)]
        for completion in ours.complete(prompts, max_new_tokens=12, temperature=0):
            prompt = torch.tensor([tokenizer.encode(completion.prompt)])
            settings = GenerationConfig(
                max_new_tokens=12, do_sample=False, eos_token_id=ENDS, suppress_tokens=no_token, pad_token_id=293
            )
            new = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
            new = new[0, prompt.shape[1] :].tolist()
            reason = new[-1] if new[-1] in ENDS else "length"
            assert completion.token_ids == [id for id in new if id not in ENDS]
            assert completion.finish_reason == ("length" if reason == "length" else "eos")
            reasons.add(reason)
        drafted = codegen_jax.load(str(name), draft="lookup").complete(prompts, max_new_tokens=12, temperature=0)
        assert [c.token_ids for c in drafted] == [
            c.token_ids for c in ours.complete(prompts, max_new_tokens=12, temperature=0)
        ]
    assert 292 in reasons  # not only the first id in the list


def test_training_and_resuming_keep_the_settings_and_files(tmp_path, chat, texts):
    # a tokenizer without metadata, as in older token files or when it was given as a single file
    tokenizer = BpeTokenizer(load_tokenizer(chat).files()["tokenizer.json"].decode())
    prepare([write_shard(tmp_path / "a.jsonl", texts)], str(tmp_path / "tokens"), tokenizer)
    for steps in (1, 2):
        config = tiny_run(
            tmp_path / "run",
            tmp_path / "tokens",
            model={"vocab_size": 300, "n_positions": 64},
            training={"steps": steps},
            checkpoint={"save_every": 1},
            init_from=str(chat),
        )
        train(config)
        convert(str(tmp_path / "run"), str(tmp_path / f"out{steps}"), to="hf")
        assert json.loads((tmp_path / f"out{steps}/generation_config.json").read_text()) == GENERATION
        for file in (chat / file for file in CARRIED if (chat / file).exists()):
            assert (tmp_path / f"out{steps}" / file.name).read_bytes() == file.read_bytes()
    assert np.all(codegen_jax.load(str(tmp_path / "run")).end_ids == tuple(ENDS))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token_id": 2}, (0,)),  # "#", in CodeGen's first releases
        ({"eos_token_id": 50256}, (0,)),  # beyond the vocabulary
        ({"eos_token_id": None}, (0,)),
        ({"eos_token_id": [2, 290]}, (290,)),
        ({"eos_token_id": 290}, (290,)),
    ],
)
def test_an_eos_id_that_stands_for_text_is_replaced(tmp_path, bpe, settings, expected, caplog):
    parts = json.loads(bpe.files()["tokenizer.json"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    parts["added_tokens"].append({"id": 290, "content": "<|end|>", **flags})
    save(peer(), tmp_path / "hf", tokenizer=BpeTokenizer(json.dumps(parts)))
    (tmp_path / "hf/generation_config.json").write_text(json.dumps(settings))
    assert codegen_jax.load(str(tmp_path / "hf")).end_ids == expected
    is_wrong = settings["eos_token_id"] not in (None, 290)
    assert ("in generation_config.json does not fit the tokenizer" in caplog.text) == is_wrong
    convert(str(tmp_path / "hf"), str(tmp_path / "out"), to="hf")
    written = json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]
    assert written == (settings["eos_token_id"] if not is_wrong else [290] if 290 in expected else 0)


def test_replacing_the_tokenizer_discards_the_old_ids(tmp_path, chat, tokenizer, caplog):
    convert(str(chat), str(tmp_path / "ours"), tokenizer=tokenizer)
    weights = open_model(str(tmp_path / "ours"))
    assert weights.generation_config == {} and "stand for different text" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", "{", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[]", "generation_config.json: must contain a JSON object"),
        ("generation_config.json", '{"eos_token_id": "<|im_end|>"}', "a list of ids, got '<|im_end|>'"),
        ("generation_config.json", '{"eos_token_id": [1, true]}', "eos_token_id must be an id or a list of ids"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not JSON"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json: must contain a JSON object, got a list"),
    ],
)
def test_damaged_files_are_reported_by_name(tmp_path, bpe, file, content, message):
    save(peer(), tmp_path / "hf", tokenizer=bpe)
    (tmp_path / "hf" / file).write_text(content)
    with pytest.raises(UserError) as error:
        open_model(str(tmp_path / "hf"))
    assert message in str(error.value) and str(tmp_path / "hf") in str(error.value)
