"""Near-duplicates and documents that quote a benchmark are dropped."""

import json

import pytest

from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report
from codegen_jax.errors import UserError
from tests.conftest import write_shard


def test_only_near_duplicates_are_dropped(tmp_path, texts, tokenizer):
    edited = texts[3].replace("token", "word").replace("\n", "\n ")  # changes some names and the layout
    shards = [write_shard(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((texts, [edited, texts[5], "x"]))]
    manifest = prepare(shards, str(tmp_path / "out"), tokenizer, dedup="minhash")
    assert manifest.documents == len([text for text in texts if text]) + 1
    dropped = {stage["stage"]: stage["dropped"] for stage in load_report(tmp_path / "out")["stages"]}
    assert dropped["dedup"] == {"duplicate": 1} and dropped["near dedup"] == {"near-duplicate": 1}


def test_documents_that_quote_a_benchmark_are_dropped(tmp_path, texts, tokenizer):
    prompt = "def f(a, b):\n    # add the two numbers a and b and return their sum, or 0 when both are None\n"
    turns = ["Assign a string {A} to a variable and", "reverse its words one by one in the order of their length"]
    records = [{"prompt": prompt, "canonical_solution": "    return 1\n"}, {"prompts": turns}]
    (tmp_path / "benchmark.jsonl").write_text("\n".join(map(json.dumps, records)))
    quotes = ["x = 1\n" + prompt.upper() + "y", "\n".join(turns) + " more"]
    shard = write_shard(tmp_path / "0.jsonl", [*texts, *quotes])
    manifest = prepare([shard], str(tmp_path / "out"), tokenizer, decontaminate=[str(tmp_path / "benchmark.jsonl")])
    assert manifest.documents == len([text for text in texts if text])
    assert load_report(tmp_path / "out")["stages"][-1]["dropped"] == {"contaminated": 2}


def test_a_benchmark_without_prompts_is_named(tmp_path, texts, tokenizer):
    (tmp_path / "benchmark.jsonl").write_text('{"question": "?"}')
    shard = write_shard(tmp_path / "0.jsonl", texts)
    with pytest.raises(UserError, match=r"benchmark.jsonl: needs one of the fields prompt, prompts"):
        prepare([shard], str(tmp_path / "out"), tokenizer, decontaminate=[str(tmp_path / "benchmark.jsonl")])
