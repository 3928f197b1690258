"""codegen-jax evaluate SAMPLES humaneval|mbpp: mistakes give a one-line error before anything is run or written."""

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
    ("words", "said"),
    [
        ("samples.jsonl humaneval", "samples.jsonl: line 1: task_id 'Mbpp/601' is no problem of the benchmark"),
        ("cut.jsonl mbpp --problems mbpp.jsonl", "cut.jsonl: line 2: the last one, without an end"),
        ("none.jsonl mbpp --problems mbpp.jsonl", "none.jsonl: no such file or folder"),
        ("samples.jsonl mbpp --problems none.jsonl", "none.jsonl: no such file or folder"),
        (
            "samples.jsonl mbpp --problems samples.jsonl",
            "samples.jsonl: line 1: task_id is 'Mbpp/601', which",
        ),
        ("samples.jsonl mbpp", "the following arguments are required: --problems"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --workers 0", "--workers: 0 must be positive"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --timeout nan", "--timeout: nan must be positive"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --timeout 1e10", "--timeout: 10000000000.0 must be positive"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --k 1 x", "--k: 'x' must be a whole number"),
        ("samples.jsonl mbpp --problems mbpp.jsonl --k 1 0", "--k: 0 must be positive"),
        ("samples.jsonl humaneval --sandbox docker", "--sandbox: invalid choice: 'docker'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(files, tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words.split(), "--output", "out"])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not (tmp_path / "out").exists()
    assert error.startswith(f"codegen-jax: error: {said}") and error.count("\n") == 1, error
