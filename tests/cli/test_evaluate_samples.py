"""codegen-jax evaluate SAMPLES humaneval|mbpp: mistakes give a one-line error before anything runs or is written."""

import pytest

from codegen_jax.cli import main
from tests.evaluation.benchmarks import lines, write_lines


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "mbpp.jsonl", lines())
    write_lines(tmp_path / "samples.jsonl", [{"task_id": "Mbpp/601", "completion": "x"}])
    (tmp_path / "cut.jsonl").write_text('{"task_id": 601, "completion": "x"}\n{"task_id": 601, "comp')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("samples.jsonl humaneval", "samples.jsonl: line 1: task_id 'Mbpp/601' is not in the benchmark"),
        ("cut.jsonl mbpp --problems mbpp.jsonl", "cut.jsonl: line 2: the last line is incomplete"),
        ("none.jsonl mbpp --problems mbpp.jsonl", "none.jsonl: no such file or folder"),
        ("samples.jsonl mbpp --problems none.jsonl", "none.jsonl: no such file or folder"),
        (
            "samples.jsonl mbpp --problems samples.jsonl",
            "samples.jsonl: line 1: task_id is 'Mbpp/601', not a whole number",
        ),
        ("samples.jsonl mbpp", "the following arguments are required: --problems"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --workers 0", "--workers: must be positive, got 0"),
        (
            "samples.jsonl mbpp --problems mbpp.jsonl --timeout nan",
            "--timeout: must be above 0 and at most 86400, got nan",
        ),
        (
            "samples.jsonl mbpp --problems mbpp.jsonl --timeout 1e10",
            "--timeout: must be above 0 and at most 86400, got 10000000000.0",
        ),
        ("samples.jsonl mbpp --problems mbpp.jsonl --k 1 x", "--k: must be an integer, got 'x'"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --k 1 0", "--k: must be positive, got 0"),
        ("samples.jsonl humaneval --sandbox docker", "--sandbox: invalid choice: 'docker'"),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_writes_nothing(files, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words.split(), "--output", "out"])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not (tmp_path / "out").exists()
    assert error.startswith(f"codegen-jax: error: {message}") and error.count("\n") == 1, error
