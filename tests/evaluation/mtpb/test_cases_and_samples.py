"""Reading MTPB's problems and samples from files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from codegen_jax.errors import UserError
from codegen_jax.evaluation.mtpb.cases import read_cases, single_turn
from codegen_jax.evaluation.mtpb.samples import read_mtpb_samples
from tests.evaluation.benchmarks import write_lines

MTPB = Path(__file__).parents[4] / "shared/data/benchmarks/mtpb.jsonl"
PROBLEM = {
    "id": "7",
    "prompts": ["Assign {A} to x.", "Print x{B}."],
    "inputs": [{"A": "[1, 2]", "B": "!"}, {"A": {"k": [1]}, "B": ""}],
    "outputs": [[1, 2], None, 3],
    "max_gen_length": 9,
}


@pytest.fixture
def problems(tmp_path):
    def write(*records):
        return write_lines(tmp_path / "mtpb.jsonl", list(records))

    return write


def test_a_case_has_prompts_with_the_input_filled_in(problems):
    first, second, other = read_cases(problems(PROBLEM, PROBLEM | {"id": "3", "inputs": [{"A": 1, "B": 2}]}))[::-1]
    assert (other.problem, other.case, other.prompts) == ("3", 0, ("# Assign 1 to x.\n", "# Print x2.\n"))
    assert (second.task_id, second.prompts[0], second.expected) == ("7/0", "# Assign [1, 2] to x.\n", [1, 2])
    assert (first.task_id, first.prompts[0], first.max_new_tokens) == ("7/1", "# Assign {'k': [1]} to x.\n", 9)
    assert first.expected is None


def test_a_prompt_follows_the_import_and_all_earlier_turns(problems):
    case = read_cases(problems(PROBLEM))[0]
    start = "# Import libraries.\n\nimport numpy as np\n\n# Assign [1, 2] to x.\n"
    assert case.model_prompt([]) == start
    assert case.model_prompt(["x = [1, 2]"]) == start + "x = [1, 2]\n\n# Print x!.\n"
    assert case.history(["x = [1, 2]", "print(x)"]) == start + "x = [1, 2]\n\n# Print x!.\nprint(x)\n\n"
    single = single_turn(case)
    assert single.model_prompt([]) == start + "# Print x!.\n" and single.max_new_tokens == 18
    assert single.history(["print(x)"]) == start + "# Print x!.\nprint(x)\n\n"


@pytest.mark.skipif(not MTPB.exists(), reason="needs the authors' mtpb.jsonl")
def test_the_authors_file_has_575_cases():
    cases = read_cases(str(MTPB))
    assert [case.problem for case in cases[::5]] == [str(number) for number in range(1, 116)]
    assert all(count == 5 for count in Counter(case.problem for case in cases).values())
    assert Counter(case.max_new_tokens for case in cases) == {128: 88 * 5, 256: 26 * 5, 512: 5}
    records = {record["id"]: record for record in map(json.loads, MTPB.read_text().splitlines())}
    for case in cases:
        record = records[case.problem]
        filled = [f"# {prompt.format(**record['inputs'][case.case])}\n" for prompt in record["prompts"]]
        assert list(case.prompts) == filled and case.expected == record["outputs"][case.case]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 7}, "line 1: id is 7, not text"),
        ({"id": "x"}, "line 1: id is 'x', not a number"),
        ({"id": "1" * 5000}, "line 1: id is '1111"),
        ({"prompts": ["{B:>99999999999999}"]}, "line 1: a prompt can't be filled with its inputs (MemoryError: "),
        ({"prompts": []}, "line 1: prompts must be a non-empty list of texts"),
        ({"prompts": ["{C}"]}, "line 1: a prompt can't be filled with its inputs (KeyError: 'C')"),
        ({"prompts": ["{"]}, "line 1: a prompt can't be filled with its inputs (ValueError: "),
        ({"inputs": [1]}, "line 1: inputs must be a list of objects, at least one with an output"),
        ({"outputs": []}, "line 1: inputs must be a list of objects, at least one with an output"),
        ({"max_gen_length": 0}, "line 1: max_gen_length is 0, not a positive whole number"),
    ],
)
def test_an_invalid_problem_is_reported_with_its_line(problems, changes, message):
    path = problems(PROBLEM | changes)
    with pytest.raises(UserError) as raised:
        read_cases(path)
    assert str(raised.value).startswith(f"{path}: {message}") and str(raised.value).endswith("give MTPB's mtpb.jsonl")


def test_a_repeated_problem_is_reported(problems):
    with pytest.raises(UserError, match="line 2: id 7 is repeated"):
        read_cases(problems(PROBLEM, PROBLEM))


@pytest.fixture
def samples(problems, tmp_path):
    cases = read_cases(problems(PROBLEM))

    def read(*records):
        return read_mtpb_samples(write_lines(tmp_path / "samples.jsonl", list(records)), cases)

    return read


OURS = {"task_id": "7", "case": 1, "completions": ["x = 1", "print(x)"]}
AUTHORS = {"id": "7", "input": {"A": {"k": [1]}, "B": ""}, "gold_output": None, "completions": "print(3)\n\n"}


def test_samples_in_either_format_become_programs(samples, problems):
    case = read_cases(problems(PROBLEM))[1]
    (ours, theirs), mode = samples(OURS, AUTHORS)
    assert (ours.task_id, ours.program, ours.record) == ("7/1", case.history(OURS["completions"]), OURS)
    assert (theirs.task_id, theirs.program, theirs.record) == ("7/1", "print(3)\n\n", AUTHORS) and mode == "multi"
    single = OURS | {"completions": ["print(x)"]}
    (only,), mode = samples(single)
    assert only.program == single_turn(case).history(["print(x)"]) and mode == "single"
    assert samples(OURS, single)[1] == "mixed"
    assert samples(OURS | {"task_id": 7})[0][0].task_id == "7/1"


def test_the_authors_samples_of_a_shared_input_are_split_between_its_cases(problems, tmp_path):
    shared = {"inputs": [{"A": 1, "B": 2}, {"A": 3, "B": 4}, {"A": 1, "B": 2}], "outputs": [0, 0, 0]}
    cases = read_cases(problems(PROBLEM | shared))
    drawn = [{"id": "7", "input": case.given, "gold_output": 0, "completions": "x"} for case in cases for _ in "12"]
    found, _ = read_mtpb_samples(write_lines(tmp_path / "authors.jsonl", drawn), cases)
    assert Counter(sample.task_id for sample in found) == {"7/0": 2, "7/1": 2, "7/2": 2}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"case": 1, "completions": []}, "no field task_id"),
        (OURS | {"task_id": "8"}, "task_id '8' with case 1 is not in the benchmark"),
        (OURS | {"case": 2}, "task_id '7' with case 2 is not in the benchmark"),
        (OURS | {"case": True}, "task_id '7' with case True is not in the benchmark"),
        (OURS | {"completions": "x"}, "completions must be a list of texts, one per turn"),
        (OURS | {"completions": ["a"] * 3}, "3 completions, but problem 7 has 2 turns"),
        (OURS | {"completions": []}, "0 completions, but problem 7 has 2 turns"),
        (AUTHORS | {"input": {"A": 2}}, "id '7' with input {'A': 2} is not in the benchmark"),
        (
            AUTHORS | {"gold_output": 4},
            "gold_output is 4, but the problem's output is None; set --problems to the file",
        ),
        (AUTHORS | {"completions": ["x"]}, "completions must be the whole program, as text"),
    ],
)
def test_an_invalid_sample_is_reported_with_its_line(samples, record, message):
    with pytest.raises(UserError, match=r"samples.jsonl: line 2: ") as raised:
        samples(OURS, record)
    assert message in str(raised.value)
