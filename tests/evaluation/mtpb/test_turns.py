"""evaluate MODEL mtpb: each turn equals the completion of its prompt alone; interrupted runs write the same folder."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_jax.cli import main
from codegen_jax.errors import UserError
from codegen_jax.evaluation.evaluate_model import Evaluation, evaluate_model
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import Judges
from codegen_jax.evaluation.model_identity import model_identity
from codegen_jax.evaluation.mtpb.cases import PREFIX, read_cases, single_turn
from codegen_jax.evaluation.mtpb.turns import Turns
from codegen_jax.evaluation.protocol import Protocol
from codegen_jax.evaluation.sandbox_layers import choose_layer
from codegen_jax.inference.generator import Generator
from codegen_jax.weights.open import open_model
from tests.evaluation.benchmarks import write_lines
from tests.evaluation.folders import assert_kills_change_nothing, content, rows
from tests.peers import peer, save, tiny_bpe

# A random model writes hardly any program that runs, so tests of reports use given samples; here only its text matters
PROBLEMS = [
    {"id": "2", "prompts": ["Set x to {x}.", "Add x.", "Print x."], "inputs": [{"x": 1}, {"x": 2}], "outputs": [2, 4]},
    {"id": "1", "prompts": ["Set y.", "Print y."], "inputs": [{}, {}], "outputs": [1, None], "max_gen_length": 5},
]  # fmt: skip
TOKENIZER = tiny_bpe([PREFIX + "# Set x to 1.\nx = 1\n\n# Double x.\nx *= 2\nprint(x)\n\n\n#"], vocab_size=330)
TEMPERATURES = (0.5, 1.5)
MTPB = Path(__file__).parents[4] / "shared/data/benchmarks/mtpb.jsonl"


def model():
    return peer(n_positions=384, vocab_size=TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model, problems and samples."""
    folder = tmp_path_factory.mktemp("turns")
    records = [record if "max_gen_length" in record else record | {"max_gen_length": 7} for record in PROBLEMS]
    write_lines(folder / "mtpb.jsonl", records)
    write_lines(folder / "long.jsonl", [records[1] | {"max_gen_length": 384}])
    write_lines(folder / "samples.jsonl", [{"task_id": "1", "case": 0, "completions": ["y = 1", "print(y)"]}])
    save(model(), folder / "model", tokenizer=TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def cases(files):
    return read_cases(str(files / "mtpb.jsonl"))


@pytest.fixture(scope="module")
def generator(files):
    loaded = Generator.load(str(files / "model"), "float32")
    loaded.max_rows = 8
    return loaded


@pytest.fixture(scope="module")
def evaluate(files, cases, generator):
    """A function that evaluates with changes to the protocol and to `Evaluation`, and returns the report."""
    layer, identity = choose_layer("auto"), model_identity("m", open_model(str(files / "model")))

    def run(output, share=(1, 1), mode="multi", given=cases, **changes):
        protocol = Protocol(**{"num_samples": 3, "temperatures": TEMPERATURES} | changes)
        settings = Settings(None, layer.description, False)
        benchmark = Turns(given, mode, "official")
        evaluation = Evaluation(benchmark, len(given), share, protocol, settings)
        return evaluate_model(evaluation, identity, str(output), lambda: generator, lambda: Judges(layer, 2, None))

    return run


@pytest.fixture(scope="module")
def whole(evaluate, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    evaluate(folder)
    return folder


def test_a_run_writes_the_expected_files(whole):
    kinds = [f"{kind}_T{t}.jsonl" for kind in ("samples", "results", "timings") for t in TEMPERATURES]
    reports = [f"report_T{t}.json" for t in TEMPERATURES]
    assert {path.name for path in whole.iterdir()} == {
        *kinds,
        *reports,
        "parts",
        "run.json",
        "report.json",
        "report.md",
    }
    for temperature in TEMPERATURES:
        results = rows(whole, f"results_T{temperature}.jsonl")
        places = [(row["task_id"], row["case"], row["sample"]) for row in results]
        assert places == [(problem, case, n) for problem in "12" for case in (0, 1) for n in range(3)]
        for row in results:
            turns, max_tokens = (2, 5) if row["task_id"] == "1" else (3, 7)
            assert (
                len(row["completions"]) == len(row["finish_reasons"]) == turns and row["tokens"] <= turns * max_tokens
            )
            assert row["temperature"] == temperature and row["passed"] == (row["outcome"] == "passed")
        report = json.loads((whole / f"report_T{temperature}.json").read_text())
        assert report["executions"] == 12 and report["mode"] == "multi" and report["checker"] == "official"
        assert report["temperature"] == temperature and report["problems"] == report["attempted"] == 2


def test_every_turn_equals_the_completion_of_its_prompt_alone(whole, cases, generator):
    protocol = Protocol()
    for row in rows(whole, "samples_T1.5.jsonl")[::2]:
        case = next(case for case in cases if (case.problem, case.case) == (row["task_id"], row["case"]))
        for turn, completion in enumerate(row["completions"]):
            (alone,) = generator.complete(
                [case.model_prompt(row["completions"][:turn])],
                seed=protocol.seed_of(f"{case.task_id} turn {turn}", row["sample"]),
                **protocol.options(1.5) | {"max_new_tokens": case.max_new_tokens},
            )
            assert alone.completion == completion and alone.finish_reason == row["finish_reasons"][turn]


def test_completions_differ_between_samples_turns_and_cases(whole):
    completions = [tuple(row["completions"]) for row in rows(whole, "samples_T1.5.jsonl")]
    assert len(set(completions)) == len(completions)
    assert all(len(set(texts)) > 1 for texts in completions)


def truncated(text):
    """Like the authors' truncate(), for texts without eos."""
    for pattern in ("^print", "^def"):
        found = list(re.finditer(pattern, text, re.MULTILINE))
        text = text[: found[1].start()] if len(found) > 1 else text
    ends = [re.search(pattern, text, re.MULTILINE) for pattern in ("^#", "^'''", '^"""', "\n\n\n")]
    return text[: min((end.start() for end in ends if end), default=None)]


@pytest.mark.parametrize("mode", ["multi", "single"])
def test_greedy_turns_equal_those_of_transformers_in_the_authors_loop(evaluate, cases, tmp_path, mode):
    import torch

    given = [single_turn(case) for case in cases] if mode == "single" else cases
    evaluate(tmp_path / "out", mode=mode, given=given, num_samples=1, temperatures=(0.0,))
    theirs = model()
    for row, case in zip(rows(tmp_path / "out", "samples_T0.jsonl"), given, strict=True):
        history = PREFIX
        for prompt, completion in zip(case.prompts, row["completions"], strict=True):
            history += prompt
            ids = torch.tensor([TOKENIZER.encode(history)])
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=case.max_new_tokens
            )[0, ids.shape[1] :].tolist()
            ended = out[: out.index(TOKENIZER.eos_id)] if TOKENIZER.eos_id in out else out
            assert completion == truncated(TOKENIZER.decode(ended))
            history += completion + "\n\n"
        assert case.history(row["completions"]) == history


def test_a_history_that_is_too_long_is_truncated_from_the_left_and_counted(evaluate, cases, generator, tmp_path):
    (case,) = given = [replace(cases[-1], max_new_tokens=364)]
    room = 384 - 364
    assert evaluate(tmp_path / "out", given=given, num_samples=1, temperatures=(0.5,))["cut"] == 1
    (row,) = rows(tmp_path / "out", "samples_T0.5.jsonl")
    cut_tokens, protocol = 0, Protocol()
    for turn, completion in enumerate(row["completions"]):
        ids = TOKENIZER.encode(case.model_prompt(row["completions"][:turn]))
        seed = protocol.seed_of(f"{case.task_id} turn {turn}", 0)
        options = protocol.options(0.5) | {"max_new_tokens": 364}
        assert generator.complete([ids[-room:]], seed=seed, **options)[0].completion == completion
        cut_tokens += len(ids) - room
    assert row["cut_tokens"] == cut_tokens > 0


def test_shares_in_any_order_equal_a_single_run(evaluate, whole, tmp_path):
    folder = tmp_path / "out"
    assert evaluate(folder, share=(2, 2)) is None and not (folder / "report.json").exists()
    assert evaluate(folder, share=(1, 2)) is not None
    for temperature in TEMPERATURES:
        shares, once = (rows(place, f"results_T{temperature}.jsonl") for place in (folder, whole))
        assert [row.pop("logprob") for row in shares] == pytest.approx([row.pop("logprob") for row in once], abs=2e-3)
        assert shares == once
    assert content(folder)["report.json"] == content(whole)["report.json"]
    for part in (1, 2):
        evaluate(tmp_path / "in order", share=(part, 2))
    assert content(folder) == content(tmp_path / "in order")


def test_a_part_of_another_case_is_reported_as_damaged(evaluate, whole, tmp_path):
    evaluate(tmp_path / "out", share=(1, 4))
    (tmp_path / "out/parts/T0.5/1.jsonl").write_bytes((whole / "parts/T0.5/0.jsonl").read_bytes())
    with pytest.raises(Exception, match=r"parts/T0.5/1.jsonl is damaged; remove it"):
        evaluate(tmp_path / "out")


def test_a_folder_of_the_other_mode_is_refused_naming_the_mode(evaluate, whole, cases):
    before = content(whole)
    with pytest.raises(UserError, match=r"contains another evaluation \(mode: multi there, single here\)"):
        evaluate(whole, mode="single", given=[single_turn(case) for case in cases])
    assert content(whole) == before


def command(files, output):
    given = ["--problems", str(files / "mtpb.jsonl"), "--output", str(output), "--num-samples", "40"]
    return [sys.executable, "-m", "codegen_jax", "evaluate", str(files / "model"), "mtpb", *given]


@pytest.mark.slow
def test_a_killed_command_resumes_and_writes_the_same_files(files, tmp_path):
    killed = assert_kills_change_nothing(lambda output: command(files, output), tmp_path, parts=(1, 5))
    assert len(rows(killed, "results_T0.8.jsonl")) == 4 * 40


# all turns of the first five problems, with the input filled in as in the prompts
SOLUTIONS = {
    "1": [
        'my_string = "{A}"',
        "my_string = my_string.lower()",
        "chars = list(set(my_string))",
        "chars.sort()",
        "print(chars)",
    ],
    "2": [
        "numbers = {numbers}",
        "total = sum(numbers)",
        "normalized = [number / total * 100 for number in numbers]",
        "formatted = ['%.1f' % number for number in normalized]",
        "print(formatted)",
    ],
    "3": [
        "def seconds_of_minutes(minutes):\n    return minutes * 60",
        "def seconds_of_hours(hours):\n    return hours * 3600",
        "print(seconds_of_hours({a1}) + seconds_of_minutes({a2}))",
    ],
    "4": [
        "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
        "def square(n):\n    return n * n",
        "print(square(fibonacci({a1})))",
    ],
    "5": [
        "my_numbers = {A}",
        "n_neg = len([n for n in my_numbers if n < 0])",
        "n_pos = len([n for n in my_numbers if n > 0])",
        "print(max(n_neg, n_pos))",
    ],
}
CONFIG = """
output: run
model: {n_layer: 4, n_embd: 128, n_head: 4, rotary_dim: 16, vocab_size: 1024, n_positions: 1024, dtype: float32}
data: {train: tokens, sequence_length: 256}
optimizer: {learning_rate: 4.0e-3, end_learning_rate: 4.0e-4, warmup_steps: 30, decay_steps: 360}
training: {steps: 400, batch_size: 16, remat: dots}
"""


@pytest.mark.slow
@pytest.mark.skipif(not MTPB.exists(), reason="needs the authors' mtpb.jsonl")
def test_a_model_trained_on_five_problems_passes_those(tmp_path):
    cases = [case for case in read_cases(str(MTPB)) if case.problem in SOLUTIONS]
    texts = [case.history([turn.format(**case.given) for turn in SOLUTIONS[case.problem]]) for case in cases]
    tiny_bpe(texts, vocab_size=900).save(tmp_path)  # its tokenizer.json
    order = random.Random(0)
    shuffled = [order.sample(texts, len(texts)) for _ in range(100)]
    write_lines(tmp_path / "shard.jsonl", [{"text": text} for one in shuffled for text in one])
    (tmp_path / "run.yaml").write_text(CONFIG)

    def call(*words):
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        command = [sys.executable, "-m", "codegen_jax", *words]
        subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True, capture_output=True)

    call("prepare", "shard.jsonl", "--output", "tokens", "--tokenizer", "tokenizer.json", "--whitespace-tokens")
    call("train", "run.yaml")
    call("evaluate", "run", "mtpb", "--problems", str(MTPB), "--output", "out", "--greedy", "--limit", "7")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["rates"] == dict.fromkeys(SOLUTIONS, 1.0) | {"6": 0.0, "7": 0.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model mtpb --problems mtpb.jsonl --limit 3", "--limit: must be from 1 to 2, the number of problems, got 3"),
        ("model mtpb --problems mtpb.jsonl --greedy --num-samples 2", "--num-samples: conflicts with --greedy"),
        ("model mtpb --problems long.jsonl", "problem 1: a turn of 384 tokens leaves no room for a prompt in"),
        ("model mtpb --problems nowhere.jsonl", "nowhere.jsonl: "),
        ("samples.jsonl mtpb --problems mtpb.jsonl --mode single", "--mode: applies only to a model, but samples"),
        ("samples.jsonl mtpb --problems mtpb.jsonl --share 1/2", "--share: applies only to a model, but samples.jsonl"),
        ("samples.jsonl mtpb --problems samples.jsonl", "samples.jsonl: line 1: no field id; give MTPB's mtpb.jsonl"),
        ("mtpb.jsonl mtpb --problems mtpb.jsonl", "mtpb.jsonl: line 1: no field task_id"),
    ],
)  # fmt: skip
def test_a_mistake_gives_a_one_line_error_and_writes_nothing(files, monkeypatch, capsys, words, message):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words.split(), "--output", "out"])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not (files / "out").exists()
    assert error.startswith(f"codegen-jax: error: {message}") and error.count("\n") == 1, error
