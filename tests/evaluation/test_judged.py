"""Reading an evaluation's folder: samples are read back unchanged; anything else is a one-line error."""

import json

import pytest

from codegen_jax.errors import UserError
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.judged import Judged, find, read_results
from codegen_jax.evaluation.problems import mbpp
from codegen_jax.evaluation.run_evaluation import run_evaluation
from codegen_jax.evaluation.samples import read_samples
from codegen_jax.evaluation.tally import tally
from tests.evaluation.benchmarks import judge_here, lines, write_lines


def result(task_id, sample, outcome="passed", **others):
    error = "" if outcome == "passed" else "NameError: x"
    return {
        "task_id": task_id,
        "completion": f"{sample}",
        "sample": sample,
        "outcome": outcome,
        "error": error,
    } | others


def test_results_are_sorted_by_temperature_and_keep_file_order(tmp_path):
    for temperature in ("0.8", "0", "1e-05"):
        write_lines(tmp_path / f"results_T{temperature}.jsonl", [result("B/1", 0), result("A/0", 1, "failed")])
    write_lines(tmp_path / "samples_T0.2.jsonl", [{"task_id": "A/0", "completion": ""}])
    results = read_results(str(tmp_path))
    assert list(results) == [0.0, 1e-5, 0.8]
    for judged in results.values():
        assert judged == [Judged("B/1", 0, "0", "passed", ""), Judged("A/0", 1, "1", "failed", "NameError: x")]


def test_given_samples_are_numbered_and_give_the_pass_at_k_of_their_report(tmp_path):
    """Any spelling of a problem and any additional fields are accepted; the program that ran is shown."""
    problems = mbpp(write_lines(tmp_path / "mbpp.jsonl", lines()))
    solution = problems[3].solution
    given = [
        {"task_id": 2, "completion": "x", "sample": "theirs"},
        {"task_id": 601, "completion": "y"},
        {"task_id": "Mbpp/2", "completion": "x", "solution": solution},
        {"task_id": "2", "solution": solution, "sample": 7},
        {"task_id": 601, "completion": problems[2].solution},
    ]
    by_id = {problem.task_id: problem for problem in problems}
    samples = read_samples(write_lines(tmp_path / "samples.jsonl", given), by_id)
    settings = Settings(None, (), False)
    report = run_evaluation("mbpp", problems, samples, str(tmp_path / "out"), settings, judge_here, (1, 2))
    (temperature, judged), *others = read_results(str(tmp_path / "out")).items()
    assert temperature is None and not others
    assert [(one.task_id, one.sample) for one in judged] == [("2", 0), ("601", 0), ("2", 1), ("2", 2), ("601", 1)]
    assert [one.completion for one in judged[2:4]] == [solution] * 2
    assert tally(judged).pass_at_k((1, 2)) == report["pass_at_k"] == {"1": (2 / 3 + 1 / 2) / 2, "2": 1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task_id": "A/0", "comp', "a truncated JSON object"),
        ("[1]", "not a JSON object"),
        (json.dumps(result(None, 1)), "no task_id"),
        (json.dumps(result("A/0", 1, completion=None)), "no completion"),
        (json.dumps(result("A/0", 1, outcome="won")), "no valid outcome and error"),
        (json.dumps(result("A/0", "1")), "sample is '1', not a number"),
    ],
)
def test_a_damaged_line_is_reported(tmp_path, line, message):
    path = tmp_path / "results_T0.2.jsonl"
    path.write_text(json.dumps(result("A/0", 0)) + "\n" + line + "\n")
    with pytest.raises(
        UserError, match=f"results_T0.2.jsonl: line 2 is damaged .*{message}.*; run the same evaluate command again"
    ):
        read_results(str(tmp_path))


def test_folders_without_finished_results_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="none: no such file or folder; this folder is empty"):
        read_results("none")
    with pytest.raises(UserError, match=r"^\.: no evaluation results; it is empty"):
        read_results(".")
    write_lines(tmp_path / "samples_T0.2.jsonl", [result("A/0", 0)])
    with pytest.raises(UserError, match=r"samples_T0.2.jsonl; give the output folder of a finished"):
        read_results(".")
    with pytest.raises(UserError, match=r"samples_T0.2.jsonl: is a file; give the output folder"):
        read_results("samples_T0.2.jsonl")
    (tmp_path / "results_T0.2.jsonl").write_text("")
    with pytest.raises(UserError, match=r"results_T0.2.jsonl: contains no results"):
        read_results(".")


def test_samples_of_a_problem_are_found_by_temperature_and_number():
    some = [Judged(task_id, sample, "", "passed", "") for task_id in ("A/1", "A/10") for sample in range(3)]
    results = {0.2: some, 0.8: some[3:]}
    assert find(results, "A/1", None, None) == {0.2: some[:3]}
    assert find(results, "A/10", None, None) == {0.2: some[3:], 0.8: some[3:]}
    assert find(results, "A/10", 0.8, 2) == {0.8: some[5:]}
    with pytest.raises(UserError, match=r"^A/2: not found; .* such as A/1 \(2 in total\); did you mean A/1"):
        find(results, "A/2", None, None)
    with pytest.raises(UserError, match=r"^temperature: 0.6 not found; the results have temperatures 0.2, 0.8$"):
        find(results, "A/1", 0.6, None)
    with pytest.raises(UserError, match=r"^temperature: 0.6 not found; given samples have no temperature"):
        find({None: some}, "A/1", 0.6, None)
    with pytest.raises(UserError, match=r"^sample: 3 not found; A/1 has samples 0 to 2"):
        find(results, "A/1", None, 3)


def test_mtpb_results_are_read_by_problem(tmp_path):
    verdict = {"outcome": "passed", "error": "", "sample": 0}
    ours = [{"task_id": "1", "case": case, "completions": ["x = 1", "print(x)"]} | verdict for case in (0, 1)]
    write_lines(tmp_path / "results_T0.2.jsonl", ours)
    assert [(one.task_id, one.completion) for one in read_results(str(tmp_path))[0.2]] == [
        ("1", "x = 1\n\nprint(x)")
    ] * 2
    (tmp_path / "results_T0.2.jsonl").unlink()
    write_lines(tmp_path / "results.jsonl", [{"id": "1", "completions": "print(1)"} | verdict] * 2)
    assert [(one.sample, one.completion) for one in read_results(str(tmp_path))[None]] == [
        (0, "print(1)"),
        (1, "print(1)"),
    ]
