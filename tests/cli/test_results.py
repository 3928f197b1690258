"""codegen-jax results: comparing evaluations problem by problem, showing samples, and one-line errors."""

import numpy as np
import pytest

from codegen_jax.cli import main
from codegen_jax.evaluation.intervals import mean_interval
from codegen_jax.evaluation.pass_at_k import problem_pass_at_k
from tests.evaluation.benchmarks import write_lines
from tests.test_strict_json import strictly


def write_results(folder, passed, samples=4, name="results_T0.2.jsonl"):
    """Write results of problems A/0, A/1 and so on, with passed[i] passing samples of problem A/i."""
    folder.mkdir(exist_ok=True)
    write_lines(
        folder / name,
        [
            {"task_id": f"A/{task}", "completion": f"  return {sample}\n", "sample": sample}
            | ({"outcome": "passed", "error": ""} if sample < count else {"outcome": "failed", "error": "E: x\nmore"})
            for task, count in enumerate(passed)
            for sample in range(samples)
        ],
    )


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "first", [0, 1, 2, 3, 4])
    write_results(tmp_path / "first", [4] * 5, name="results_T0.8.jsonl")
    write_results(tmp_path / "second", [1, 4, 0, 3, 4, 4])
    write_results(tmp_path / "given", [0, 4], name="results.jsonl")
    (tmp_path / "empty").mkdir()


def run(capsys, args):
    main(["results", *args.split()])
    return capsys.readouterr().out


def test_runs_are_compared_over_their_common_problems(folders, capsys):
    found = strictly(run(capsys, "compare first second given --json --k 2 1 10"))
    assert found["runs"]["first"]["0.2"]["pass_at_k"] == {
        "1": 0.5,
        "2": pytest.approx(sum(problem_pass_at_k(4, c, 2) for c in range(5)) / 5),
    }
    assert list(found["runs"]["first"]) == ["0.2", "0.8"] and found["runs"]["given"]["-"]["samples"] == 8
    (difference,) = found["differences"]
    assert difference["run"] == "second" and difference["temperature"] == "0.2" and difference["problems"] == 5
    changes = np.array([0.25, 0.75, -0.5, 0.0, 0.0])
    assert difference["difference"] == pytest.approx(0.1) and difference["interval"] == list(mean_interval(changes))
    assert list(difference["won"].items()) == [("A/1", 0.75), ("A/0", 0.25)] and difference["lost"] == {"A/2": -0.5}

    text = run(capsys, "compare first second given --k 1 10")
    assert "given vs. first: no temperature in common." in text
    heading = "second vs. first at temperature 0.2: difference in pass@1 over the 5 problems in both\n"
    assert f"{heading}  +10.0 percentage points [" in text
    assert "  won 2: A/1 +75.0, A/0 +25.0\n  lost 1: A/2 -50.0\n" in text
    table = [line.split() for line in text.splitlines()[:5]]
    assert table[0] == ["run", "T", "problems", "samples", "pass@1", "pass@10"]
    assert table[2] == ["first", "0.8", "5", "20", "100.00%", "[100.0%,", "100.0%]", "-"]


def test_only_ten_problems_are_listed(folders, tmp_path, capsys):
    write_results(tmp_path / "many", [0] * 12)
    write_results(tmp_path / "more", [1] * 11 + [4])
    text = run(capsys, "compare many more")
    assert "won 12: A/11 +100.0, A/0 +25.0, " in text and "A/8 +25.0, and 2 more\n  lost 0\n" in text


def test_samples_are_listed_or_one_is_shown_in_full(folders, capsys):
    assert run(capsys, "show first A/3 --temperature 0.2") == (
        "A/3 at temperature 0.2\n  sample 0: passed\n  sample 1: passed\n  sample 2: passed\n  sample 3: failed; E: x\n"
    )
    assert run(capsys, "show first A/3").count("A/3 at temperature") == 2
    assert run(capsys, "show first A/3 --sample 3 --temperature 0.2") == (
        "A/3 at temperature 0.2\nsample 3: failed; E: x\nmore\n\n  return 3\n\n"
    )
    assert run(capsys, "show given A/1").startswith("A/1\n  sample 0: passed\n")


def test_control_characters_in_completions_are_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = {
        "completion": "\treturn '\u65e5\ud800'\r\n\x1b]0;x\x07\x9b31m",
        "error": "E: \x1b[2J",
        "outcome": "failed",
    }
    write_lines(tmp_path / "results_T0.2.jsonl", [{"task_id": "A/0", "sample": 0} | record])
    assert run(capsys, "show . A/0") == "A/0 at temperature 0.2\n  sample 0: failed; E: \\x1b[2J\n"
    shown = run(capsys, "show . A/0 --sample 0")
    assert shown.endswith("\n\n\treturn '\u65e5\\ud800'\\r\n\\x1b]0;x\\x07\\x9b31m\n\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare first", "the following arguments are required: DIR"),
        ("compare first first", "first: given twice"),
        ("compare first second --k 0", "--k: must be positive, got 0"),
        ("compare first empty", "empty: no evaluation results; it is empty"),
        ("compare first third", "third: no such file or folder; this folder"),
        ("show first A/33", "A/33: not found; the results have problems such as A/0 (5 in total); did you mean A/3"),
        ("show first A/3 --temperature 0.6", "--temperature: 0.6 not found; the results have temperatures 0.2, 0.8"),
        ("show first A/3 --temperature hot", "--temperature: must be a number, got 'hot'"),
        ("show first A/3 --sample 4", "--sample: 4 not found; A/3 has samples 0 to 3"),
    ],
)
def test_a_mistake_gives_a_one_line_error(folders, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        run(capsys, words)
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed
    assert error.startswith(f"codegen-jax: error: {message}") and error.count("\n") == 1, error


def test_evaluations_of_different_benchmarks_are_rejected(folders, tmp_path, capsys):
    write_lines(
        tmp_path / "empty/results_T0.2.jsonl",
        [{"task_id": "B/0", "completion": "", "sample": 0, "outcome": "passed", "error": ""}],
    )
    with pytest.raises(SystemExit):
        run(capsys, "compare first empty")
    assert (
        "empty and first: have no problem in common; give evaluations of the same benchmark" in capsys.readouterr().err
    )
