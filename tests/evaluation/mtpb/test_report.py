"""MTPB's report: the mean over problems, notes on missing files and cases, and the page."""

import json

import pytest

from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.mtpb import report_page
from codegen_jax.evaluation.mtpb.cases import Case
from codegen_jax.evaluation.mtpb.report import Execution, make_report
from codegen_jax.evaluation.mtpb.report_page import to_markdown
from codegen_jax.evaluation.mtpb.run import run_mtpb
from codegen_jax.evaluation.samples import Sample
from codegen_jax.evaluation.verdicts import Verdict

CASES = [
    Case(problem, case, (f"# {problem}.{case}\n",), expected, 8)
    for problem, expected in (("1", 3), ("2", {"a": 1}), ("10", None))
    for case in range(2)
]
HEAD = {"model": "350m_mono", "config": {"n_layer": 20, "n_embd": 1024}, "timeout": None, "unsafe": False}
HEAD |= {"sandbox": ("sandlock",)}


def executions(passed, cases=CASES, samples=2, **fields):
    """`samples` programs per case; those for the problems in `passed` pass, and all others print another value."""
    ends = {case.problem: ("passed", "") if case.problem in passed else ("failed", "printed 4") for case in cases}
    return [Execution(case, n, f"print({n})", *ends[case.problem], **fields) for case in cases for n in range(samples)]


def test_the_pass_rate_is_the_mean_over_problems_regardless_of_their_numbers_of_programs():
    found = executions(["1"]) + executions(["1"], CASES[:1], samples=40) + executions([], CASES[:1], samples=20)
    report = make_report(found, CASES, "multi", "official")
    assert report["rates"] == {"1": 44 / 64, "2": 0, "10": 0} and report["pass_rate"] == pytest.approx(44 / 64 / 3)
    assert report["passed"] == 44 and report["executions"] == 72 and report["outcomes"]["failed"] == 28
    assert report["interval"][0] <= report["pass_rate"] <= report["interval"][1]


def test_missing_files_and_cases_are_counted_and_named():
    execution = Execution(CASES[0], 0, "", "exception", "ModuleNotFoundError: No module named 'sklearn'", cut_tokens=3)
    report = make_report([execution, *executions(["2"], CASES[2:3])], CASES, "multi", "repaired")
    assert (report["problems"], report["attempted"], report["empty_cases"], report["cut"]) == (3, 2, 4, 1)
    assert report["lacking"] == {"1": "ModuleNotFoundError: No module named 'sklearn'"}
    assert report["only_repaired"] == {"2": 2}
    page = to_markdown(HEAD, {"0.2": report}, {"0.2": [execution]})
    assert "- 1: `ModuleNotFoundError: No module named 'sklearn'`" in page
    assert "Programs that passed here but always fail with the official checker: 2 for problem 2." in page
    assert "In 1 programs, the history was longer than the model's context and was truncated from the left" in page
    assert "**1 of the benchmark's 3 problems have no programs." in page and "Comparison with the paper" not in page


def test_backticks_in_an_error_do_not_break_the_page():
    execution = Execution(CASES[0], 0, "", "exception", "FileNotFoundError: 'a`**b**.csv'")
    report = make_report([execution], CASES, "multi", "official")
    page = to_markdown(HEAD, {"0.2": report}, {"0.2": [execution]})
    assert "- 1: `` FileNotFoundError: 'a`**b**.csv' ``" in page


def page_of(mode, head=HEAD, **by_temperature):
    found = {at: executions(passed) for at, passed in by_temperature.items()}
    reports = {at: make_report(ones, CASES, mode, "official") for at, ones in found.items()}
    return to_markdown(head, reports, found)


def test_the_best_temperature_is_compared_with_the_paper_for_the_whole_benchmark_only(monkeypatch):
    assert "Comparison with the paper" not in page_of("multi", **{"0.2": ["1"]})
    monkeypatch.setattr(report_page, "PROBLEMS", 3)
    page = page_of("multi", **{"0.2": ["1"], "0.6": ["1", "10"]})
    assert "| **this model** | **66.67%** |" in page and "| CodeGen-Mono 350M | 16.98% |" in page
    assert "| CodeGen-NL 350M | 0.23% (?) |" in page and "2B" not in page and "construction" not in page
    assert "1 of 3 problems were never solved at the best temperature: 2." in page
    given = page_of("multi", HEAD | {"model": None, "config": None}, **{"-": ["1"]})
    assert "2 of 3 problems were never solved: 2, 10." in given and "best" not in given
    single = page_of("single", **{"0.2": ["1"]})
    assert "| CodeGen-Mono 350M | 5.75% |" in single and "NL" not in single
    assert "this construction is ours" in single
    other = page_of("multi", HEAD | {"config": {"n_layer": 4, "n_embd": 128}}, **{"0.2": ["1"]})
    assert [line.split(" | ")[0] for line in other.splitlines() if "CodeGen" in line] == [
        f"| CodeGen-Mono {size}" for size in ("350M", "2B", "6B", "16B")
    ]


def test_given_samples_are_judged_once_and_counted_by_problem(tmp_path):
    judged = []

    def judge(by_id, programs):
        for number, task_id, program in programs:
            judged.append(number)
            printed = by_id[task_id]
            assert printed.checker == "repaired" and program == f"print({number})"
            yield number, Verdict("passed" if printed.case.problem == "1" else "exception", "E: x", 0.1, 0.1)

    samples = [
        Sample(case.task_id, f"print({number})", {"task_id": case.problem, "case": case.case, "completions": [""]})
        for number, case in enumerate(CASES[:3])
    ]
    settings = Settings(None, ("sandlock",), False)
    for _ in range(2):
        report = run_mtpb(CASES, samples, "multi", "repaired", str(tmp_path / "out"), settings, judge)
    assert judged == [0, 1, 2]
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["pass_rate"] == 0.5 and report["empty_cases"] == 3 and report["attempted"] == 2
    assert "| - | 3 | 2 | 50.00%" in (tmp_path / "out/report.md").read_text()
