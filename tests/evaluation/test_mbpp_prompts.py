"""MBPP prompts: the formats in common use, for the requested split."""

import json

import pytest

from codegen_jax.cli import main
from codegen_jax.errors import UserError
from codegen_jax.evaluation.mbpp_prompts import mbpp_for_models
from tests.evaluation.benchmarks import lines, write_lines
from tests.peers import peer, save, tiny_bpe


def records():
    """The example problems 2 to 4, and some problems of the test split."""
    one = {
        "code": "def f(x):\n  return x + 1",
        "test_setup_code": "",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
    }
    return [one | {"task_id": number, "text": f"Add one to {number}."} for number in (2, 3, 4, 11, 12, 510, 511)]


@pytest.fixture
def path(tmp_path):
    return write_lines(tmp_path / "mbpp.jsonl", records())


def test_the_zero_shot_prompt_is_a_docstring_with_text_and_first_test(path):
    problems = mbpp_for_models(path, "test", 0)
    assert [problem.task_id for problem in problems] == ["11", "12", "510"]
    assert problems[1].model_prompt == '"""\nAdd one to 12.\nassert f(1) == 2\n"""\n'
    assert problems[1].prompt == ""  # the program is the completion alone


def test_the_three_shot_prompt_is_the_authors(path):
    expected = "".join(
        f"You are an expert Python programmer, and here is your task: Add one to {number}. Your code should pass these "
        f"tests:\n\nassert f(1) == 2\nassert f(2) == 3\n[BEGIN]\n{code}"
        for number, code in [(n, "def f(x):\n  return x + 1\n[DONE]\n\n") for n in (2, 3, 4)] + [(511, "")]
    )
    assert [problem.model_prompt for problem in mbpp_for_models(path, "validation", 3)] == [expected]


def test_missing_problems_and_fields_are_reported(tmp_path, path):
    with pytest.raises(
        UserError, match=r"^split: .*mbpp.jsonl has none of the problems 601 to 974 of the train split$"
    ):
        mbpp_for_models(path, "train", 0)
    few = write_lines(tmp_path / "few.jsonl", records()[1:])
    with pytest.raises(UserError, match=r"^shots: .*few.jsonl lacks problem 2, an example in the prompt$"):
        mbpp_for_models(few, "test", 3)
    bare = write_lines(tmp_path / "bare.jsonl", [{k: v for k, v in one.items() if k != "text"} for one in records()])
    with pytest.raises(
        UserError, match=r"bare.jsonl: problem 11 has no text; give the full MBPP, not the sanitized subset$"
    ):
        mbpp_for_models(bare, "test", 0)


def test_a_model_is_evaluated_on_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "mbpp.jsonl", lines())
    tokenizer = tiny_bpe()
    save(peer(n_positions=256, vocab_size=tokenizer.vocab_size), tmp_path / "model", tokenizer=tokenizer)
    words = ["--problems", "mbpp.jsonl", "--split", "train", "--output", "out", "--num-samples", "2", "--k", "1", "2"]
    main(["evaluate", "model", "mbpp", *words, "--temperatures", "0.8", "--max-new-tokens", "6"])
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (
        report["benchmark"] == "mbpp, split train"
        and report["samples"] == {"0.8": 4}
        and report["pass_at_k"]["0.8"].keys() == {"1", "2"}
    )
    first, *_ = [json.loads(line) for line in (tmp_path / "out/results_T0.8.jsonl").read_text().splitlines()]
    assert (first["task_id"], first["passed"], first["tokens"]) == ("927", False, 6)


def test_model_flags_are_refused_for_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "mbpp.jsonl", lines())
    write_lines(tmp_path / "samples.jsonl", [{"task_id": 601, "completion": "x"}])
    with pytest.raises(SystemExit):
        main(["evaluate", "samples.jsonl", "mbpp", "--problems", "mbpp.jsonl", "--shots", "3", "--output", "out"])
    assert "--shots: applies only to a model, but samples.jsonl contains samples" in capsys.readouterr().err
