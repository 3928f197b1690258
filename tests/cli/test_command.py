"""The command as a user types it, in a separate process."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from codegen_jax.cli import make_parser
from codegen_jax.cli.arguments import PATHS
from codegen_jax.config_file import load_config
from codegen_jax.data.tokenizer import load_tokenizer
from codegen_jax.training.metrics import read_metrics
from codegen_jax.weights.run_folder import find_checkpoint
from tests.conftest import write_shard
from tests.peers import peer, save
from tests.runs import tiny_run
from tests.test_strict_json import strictly

ROOT = Path(__file__).parents[2]


def command(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "codegen_jax", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def assert_fails(result, *words):
    """Assert exit code 2 and a single line on stderr, an error that contains these words."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    assert lines[0].startswith("codegen-jax: error: ") and all(str(word) in lines[0] for word in words), lines[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory, texts):
    """A folder with shards, a tokenizer, token files and a trained run, the last three made by the command."""
    root = tmp_path_factory.mktemp("project")
    write_shard(root / "shards/0.jsonl.zst", texts[::2])
    write_shard(root / "shards/1.jsonl.zst", texts[1::2])
    for words in (
        ["tokenizer", "train", "shards", "--output", "tokenizer", "--vocab-size", "512"],
        ["prepare", "shards", "--output", "tokens", "--tokenizer", "tokenizer", "--workers", "2"],
    ):
        result = command(*words, cwd=root)
        assert result.returncode == 0, result.stderr
    config = tiny_run("run", "tokens", data={"validation": "tokens"}).to_dict()
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    result = command("train", "run.yaml", "--training.steps", "4", cwd=root)
    assert result.returncode == 0, result.stderr
    assert "step      4  loss" in result.stdout and "validation loss" in result.stdout
    assert "Traceback" not in result.stderr and "WARNING" not in result.stderr, result.stderr
    return root


def test_prepare_says_what_became_of_the_documents(project):
    lines = [{"text": t, "meta": {"path": p}} for t, p in (("x = 1\n", "a.py"), ("x = 1\n", "b.py"), ("?", "c.txt"))]
    (project / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json")
    words = ["prepare", "raw.jsonl", "--output", "filtered", "--tokenizer", "tokenizer", "--filters", "code"]
    result = command(*words, "--extensions", ".py", ".md", "--dedup", "exact", cwd=project)
    assert result.returncode == 0
    assert result.stderr == "codegen-jax: filtered: reading 1 .jsonl (0.0 MB)\n"
    *rows, last = result.stdout.splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["source", "unknown", "all"]
    assert rows[3:] == [
        "dropped, read: 1 not JSON, the first in line 4 of raw.jsonl: 'not json'",
        "dropped, code rules: 1 file extension",
        "dropped, dedup: 1 duplicate",
    ]
    assert "tokens of 1 documents" in last
    assert_fails(command(*words[:-2], "--extensions", ".py", cwd=project), "--extensions", "--filters code")
    assert_fails(command(*words, "--executor-option", "x", cwd=project), "--executor-option: 'x'", "NAME=VALUE")


def test_data_show_prints_what_a_step_trained_on(project):
    result = command("data", "show", "run.yaml", "--step", 2, "--row", 3, "--data.sequence_length", 8, cwd=project)
    assert result.returncode == 0 and result.stdout.startswith("== step 2, row 3: epoch 0, window "), result.stderr
    assert 8 <= result.stdout.count("│") <= 9
    assert_fails(command("data", "show", "run.yaml", "--step", 0, cwd=project), "--step", "0")


def test_generate_prints_one_object_a_completion(project):
    result = command(
        "generate", "run", "--prompt", "def f(", "--prompt", "class A", "--num-samples", 2, "--max-new-tokens", 5,
        "--json", cwd=project,
    )  # fmt: skip
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["def f(", "def f(", "class A", "class A"]
    assert all(row.keys() == {"prompt", "completion", "token_ids", "finish_reason"} for row in rows)
    assert all(len(row["token_ids"]) <= 5 for row in rows)


def test_generate_prints_prompt_and_completion(project):
    words = ["generate", find_checkpoint(project / "run"), "--prompt", "def f(", "--max-new-tokens", 5]
    text = command(*words, cwd=project).stdout
    row = json.loads(command(*words, "--json", cwd=project).stdout)
    assert text == row["prompt"] + row["completion"] + "\n"


def test_generate_streams_guesses_and_keeps_logprobs(project):
    words = ["generate", "run", "--prompt", "def f(", "--max-new-tokens", 12, "--temperature", 0]
    text = command(*words, cwd=project).stdout
    assert command(*words, "--stream", cwd=project).stdout == text
    guessed = command(*words, "--draft", "lookup", cwd=project)
    assert guessed.stdout == text and " guesses held: " in guessed.stderr
    row = json.loads(command(*words, "--logprobs", 2, "--json", cwd=project).stdout)
    assert len(row["logprobs"]) == len(row["top_logprobs"]) == len(row["token_ids"])
    assert all(len(top) == 2 for top in row["top_logprobs"])


def test_what_is_made_with_weights_that_are_not_finite_is_json_all_the_same(project, tmp_path):
    model = peer(vocab_size=512)
    model.lm_head.bias.data[7] = float("nan")
    folder = save(model, tmp_path / "model", tokenizer=load_tokenizer(project / "tokenizer"))
    words = ["--json", "--allow-nonfinite"]
    options = ["--prompt", "def f(", "--max-new-tokens", 2, "--logprobs", 1]
    generated = command("generate", folder, *options, *words, cwd=project)
    assert strictly(generated.stdout)["logprobs"] == [None, None]
    evaluated = command("evaluate", folder, "perplexity", "tokens", "--max-windows", 1, *words, cwd=project)
    assert strictly(evaluated.stdout) | {"tokens": 0} == {
        "weights": "whole", "tokens": 0, "loss": None, "perplexity": None, "bits_per_byte": None,
    }  # fmt: skip
    assert all("lm_head.bias holds nan; it is taken as it is" in result.stderr for result in (generated, evaluated))
    refused = command("generate", folder, *options, "--json", cwd=project)
    assert refused.returncode == 2 and "lm_head.bias holds nan: " in refused.stderr and not refused.stdout


def test_evaluate_prints_the_perplexity_and_what_int8_adds(project):
    words = ["evaluate", "run", "perplexity", "tokens", "--max-windows", 8, "--quantize", "int8"]
    whole, int8, difference = command(*words, "--sequence-length", 32, cwd=project).stdout.splitlines()
    assert whole.startswith("whole: 256 tokens: loss ") and int8.startswith("int8: 256 tokens: loss ")
    assert re.fullmatch(r"int8 raises the perplexity by -?0\.\d{3}%", difference)


def test_train_goes_on_with_a_run(project):
    result = command("train", "run.yaml", "--training.steps", 5, "--training.log_every", 1, cwd=project)
    assert "resuming run after step 4" in result.stdout and "step      5  loss" in result.stdout


def test_a_runs_output_folder_stands_for_its_config_wherever_it_lies_now(project, tmp_path):
    moved = shutil.copytree(project / "run", tmp_path / "moved")
    steps = len({line["step"] for line in read_metrics(moved) if "loss" in line})
    result = command("train", moved, "--training.steps", steps + 1, cwd=project)
    assert f"resuming {moved} after step {steps}" in result.stdout, result.stderr
    assert read_metrics(moved)[-1]["step"] == steps + 1
    assert len(read_metrics(project / "run")) < len(read_metrics(moved))
    shown = yaml.safe_load(command("config", "show", f"{moved}/", "--seed", 7, cwd=project).stdout)
    assert (shown["output"], shown["seed"], shown["model"]["n_layer"]) == (str(moved), 7, 2)
    words = ["--step", 1, "--row", 0]
    of_run, of_file = (command("data", "show", config, *words, cwd=project).stdout for config in (moved, "run.yaml"))
    assert of_run == of_file != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "none.yaml"], ["none.yaml"]),
        (["data", "show", "tokens", "--step", "1"], ["tokens: a folder without run.json", "no run's output"]),
        (["train", "run", "--model.n_layr", "5"], ["--model.n_layr"]),
        (["generate", "run", "--prompt", "x", "--logprobs", "2"], ["--logprobs: ", "--json"]),
        (["train", "run.yaml", "--model.n_head", "5"], ["model.n_head", "5"]),
        (["train", "run.yaml", "--model.n_layr", "5"], ["model.n_layr"]),
        (["train", "run.yaml", "--mesh.fsdp", "3"], ["mesh", "8 device"]),
        (["train", "run.yaml", "--seed", "9"], ["output", "run holds another run", "seed"]),
        (["train", "run.yaml", "--data.train", "shards"], ["shards", "token files", "codegen-jax prepare"]),
        (["train", "run.yaml", "--model.vocab_size", "64", "--output", "new"], ["model.vocab_size", "64", "512"]),
        (["prepare", "none", "--output", "new", "--tokenizer", "tokenizer"], ["none"]),
        (["prepare", "shards", "--output", "tokens", "--tokenizer", "tokenizer"], ["tokens", "already"]),
        (["prepare", "shards", "--output", "new", "--tokenizer", "shards"], ["shards", "tokenizer"]),
        (["tokenizer", "train", "shards", "--output", "tokens", "--vocab-size", "512"], ["tokens", "--output"]),
        (["prepare", "shards", "--output", "new", "--tokenizer", "tokenizer", "--workers", "0"], ["--workers", "0"]),
        (["prepare", "shards", "--output", "new", "--tokenizer", "tokenizer", "--seed", "-1"], ["--seed", "-1"]),
        (["prepare", "shards", "--output", "run.yaml/new", "--tokenizer", "tokenizer"], ["run.yaml/new"]),
        (["train", "run.yaml", "--output", "run.yaml/new"], ["run.yaml/new"]),
        (
            ["tokenizer", "train", "shards", "--output", "new", "--vocab-size", "512", "--max-megabytes", "0"],
            ["--max-m"],
        ),
        (["generate", "shards", "--prompt", "x"], ["shards", "no whole checkpoint"]),
        (["generate", "run", "--prompt", ""], ["--prompt"]),
        (["convert", "run", "tokens"], ["tokens", "not an empty folder"]),
        (["convert", "shards", "new"], ["shards", "no whole checkpoint", "config.json"]),
        (["convert", "run", "run.yaml/new", "--to", "hf"], ["run.yaml", "Not a directory"]),
        (["convert", "run", "new", "--to", "hf", "--mp-num", "3"], ["--mp-num", "3", "4 heads"]),
        (["convert", "run", "new", "--mp-num", "0"], ["--mp-num: 0 must be positive"]),
        (["convert", "run", "new", "--verify"], ["--verify", "both ours"]),
        (["convert", "run", "new", "--whitespace-tokens"], ["--whitespace-tokens", "--tokenizer"]),
        (["convert", "run", "new", "--to", "hf", "--tokenizer", "shards"], ["shards", "tokenizer"]),
        (["train", "run.yaml", "--output", "new", "--init_from", "shards"], ["shards", "no whole checkpoint"]),
        (["train", "run.yaml", "--output", "new", "--init_from", "absent"], ["absent", "neither on this machine"]),
        (["generate", "run", "--prompt", "x", "--temperature", "-1"], ["--temperature"]),
        (["generate", "$NO_SUCH/run", "--prompt", "x"], ["MODEL: $NO_SUCH/run: the environment variable NO_SUCH"]),
        (["convert", "run", "~no_such/new"], ["DESTINATION: ~no_such/new: there is no such home"]),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(project, words, message):
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    assert_fails(command(*words, cwd=project), *message)
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()} == before


def test_every_path_on_the_command_line_may_begin_at_home_and_no_text_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    words = ["prepare", "~/a", "$DATA/*.jsonl", "--output", "~/b", "--tokenizer", "${DATA}/c", "--decontaminate", "~/d"]
    arguments = make_parser().parse_args(words)
    assert (arguments.inputs, arguments.output) == (["/home/me/a", "/data/*.jsonl"], "/home/me/b")
    assert (arguments.tokenizer, arguments.decontaminate) == ("/data/c", ["/home/me/d"])
    arguments = make_parser().parse_args(["generate", "~/run", "--prompt", "~/$DATA", "--draft", "lookup"])
    assert (arguments.model, arguments.prompt, arguments.draft) == ("/home/me/run", ["~/$DATA"], "lookup")
    others = {
        "N",
        "X",
        "R",
        "TEXT",
        "NAME",
        "TASK_ID",
        "I/N",
        "REGEX",
        "NAME=VALUE",
        ".EXT",
        "SLICE",
        "SECONDS",
        "VERB",
        "WHAT",
        None,
    }
    assert {action.metavar for action in every_action(make_parser())} - others == PATHS


def every_action(parser):
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from every_action(verb)


def test_an_unreadable_shard_is_named_by_a_worker_process_too(project, tmp_path):
    for number in range(2):
        shard = write_shard(tmp_path / f"shards/{number}.jsonl.zst", ["x = 1\n" * 1000])
    Path(shard).write_bytes(Path(shard).read_bytes()[:20])
    words = ["prepare", "shards", "--output", "out", "--tokenizer", project / "tokenizer", "--workers", "2"]
    result = command(*words, cwd=tmp_path)
    reads, _, result.stderr = result.stderr.partition("\n")
    assert reads == "codegen-jax: out: reading 2 .jsonl.zst (0.0 MB)"
    assert_fails(result, "shards/1.jsonl.zst", "cannot be read")


def test_words_that_a_verb_does_not_know_are_refused(project):
    result = command("generate", "run", "--prompt", "x", "--top_p", "0.5", cwd=project)
    assert result.returncode == 2 and "--top_p" in result.stderr and "Traceback" not in result.stderr


def test_convert_prints_what_it_made_and_its_proof(project, tmp_path):
    result = command("convert", project / "run", tmp_path / "hf", "--to", "hf", "--verify", cwd=project)
    assert result.returncode == 0 and result.stderr == "codegen-jax: verifying against NumPy\n", result.stderr
    made, proof = result.stdout.splitlines()
    n_params = load_config(project / "run.yaml").model.n_params
    assert made.startswith(f"{tmp_path / 'hf'}: {n_params:,} parameters") and "GiB" in made
    assert proof.startswith("verified: largest difference") and "greedy agreement 100.0%" in proof


def test_no_abbreviation_is_taken_and_the_nearest_name_is_suggested(project):
    words = ["prepare", "shards", "--output", "new", "--tokenizer", "tokenizer", "--filter", "code"]
    assert_fails(command(*words, cwd=project), "--filter: no such argument", "did you mean --filters?")
    words = ["generate", "run", "--prompt", "x", "--max-new-token", "5"]
    assert_fails(command(*words, cwd=project), "--max-new-token: no such", "did you mean --max-new-tokens?")
    assert_fails(command("generate", "run", "--prompt", "x", "--top-k", "many", cwd=project), "--top-k: 'many' must be")
    assert_fails(command("generate", "run", cwd=project), "--prompt", "codegen-jax generate --help")


def test_config_show_prints_what_a_run_would_use(project):
    shown = command("config", "show", "run.yaml", "--training.steps", 9, "--mesh.fsdp", -1, cwd=project)
    config = yaml.safe_load(shown.stdout)
    assert (config["training"]["steps"], config["training"]["remat"]) == (9, "dots")
    assert (config["mesh"]["fsdp"], config["model"]["attention"], config["model"]["head_dim"]) == (8, "xla", 8)
    shown = command("config", "show", "run.yaml", "--mesh.fsdp", 3, cwd=project)
    assert "mesh: data 1 x fsdp 3" in shown.stderr and yaml.safe_load(shown.stdout)["mesh"]["fsdp"] == 3


def test_train_help_lists_the_fields_of_a_config(project):
    text = " ".join(command("train", "--help", cwd=project).stdout.split())
    assert "--model.n_layer N_LAYER number of blocks. (required, type: int)" in text


def test_a_draft_of_another_tokenizer_is_named_by_its_flag(project):
    from tests.peers import tiny_bpe

    save(peer(), project / "other", tokenizer=tiny_bpe())
    words = ["generate", "run", "--prompt", "x", "--draft", "other"]
    assert_fails(command(*words, cwd=project), "--draft: its tokenizer is")


def test_stop_strings_may_be_given_several_times(project):
    words = ["generate", "run", "--prompt", "def f(", "--max-new-tokens", 12, "--temperature", 0, "--json"]
    text = json.loads(command(*words, cwd=project).stdout)["completion"]
    cut = command(*words, "--stop-string", "never", "--stop-string", text[-1], cwd=project)
    row = json.loads(cut.stdout)
    assert (row["completion"], row["finish_reason"]) == (text[: text.index(text[-1])], "stop")


def test_a_path_that_is_named_like_a_flag_stays_a_path(project):
    (project / "draft").mkdir()
    assert_fails(command("generate", "draft", "--prompt", "x", cwd=project), "error: draft: no whole checkpoint")


def test_a_config_may_have_brackets_in_its_name(project):
    (project / "run[1].yaml").write_text((project / "run.yaml").read_text())
    assert command("config", "show", "run[1].yaml", cwd=project).returncode == 0


DECODE_PLAN = ["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "run", "--prompt", "x", "--data", "0"], "--data: 0 must be positive"),
        (
            ["data", "show", "run.yaml", "--step", "1", "--ro", "3"],
            "--ro: no such argument of codegen-jax data show; did",
        ),
        (["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode", "--fit"], "--fit: goes with --mode train"),
        (
            ["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode", "--tensor", "0"],
            "--tensor: 0 must be positive",
        ),
        (["train", "run.yaml", "--output", "--seed"], "--output: must be followed by a value"),
    ],
)
def test_the_flag_at_fault_is_named(project, words, message):
    assert_fails(command(*words, cwd=project), message)


def test_ctrl_c_ends_a_plan_though_a_compilation_does_not_hear_it():
    deaf = (
        "import hashlib, sys\nfrom codegen_jax.cli import main, plan\n"
        "def make(_):\n    print('compiling', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
        "plan.make = make\nmain(['plan', 'run.yaml', '--topology', 'v4-8'])"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "codegen-jax: error: interrupted\n"
    assert process.returncode == 130


def unread(*words, cwd, stderr=subprocess.PIPE, program=("-m", "codegen_jax")):
    """The exit code and stderr of the command if the reader of its output has already exited."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": ""}
    words = [sys.executable, *program, *map(str, words)]
    result = subprocess.run(words, stdout=writer, stderr=stderr or writer, text=True, cwd=cwd, env=environment)
    os.close(writer)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["data", "show", "run.yaml", "--step", "1"], 141),
        (["config", "show", "run.yaml"], 141),
        (["generate", "run", "--prompt", "x", "--max-new-tokens", "3"], 141),
        (["generate", "run", "--prompt", "x", "--max-new-tokens", "3", "--stream"], 141),
        (["train", "--help"], 141),
        (["--help"], 0),
    ],
)
def test_a_command_whose_output_nobody_reads_ends_without_a_word(project, words, code):
    assert unread(*words, cwd=project) == (code, "")


def test_a_plan_that_nobody_reads_ends_without_a_word():
    printing = (
        "from codegen_jax.cli import main, plan\nplan.make = lambda _: print('x' * 100_000)\n"
        "main(['plan', 'run.yaml', '--topology', 'v4-8'])"
    )
    assert unread(cwd=ROOT, program=("-c", printing)) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_output_that_a_disk_refuses_is_an_error(project):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "codegen_jax", "config", "show", "run.yaml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=project, env=environment)
    assert_fails(result, "No space left on device")


@pytest.mark.parametrize("stderr", [subprocess.PIPE, None])
def test_a_training_run_goes_on_when_nobody_reads_its_log(project, tmp_path, stderr):
    words = ["train", "run.yaml", "--output", tmp_path / "run", "--training.steps", 3]
    assert unread(*words, cwd=project, stderr=stderr) == (0, "" if stderr else None)
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    assert find_checkpoint(tmp_path / "run").name == "3"
    assert "outcome: finished" in (tmp_path / "run/summary.md").read_text()


def test_generate_reads_prompts_from_a_file_or_standard_input(project):
    words = ["generate", "run", "--max-new-tokens", 3, "--json", "--prompt-file"]
    (project / "prompts.txt").write_text("def f(\n\nclass A\n")
    rows = [json.loads(line) for line in command(*words, "prompts.txt", cwd=project).stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["def f(", "class A"]
    assert_fails(command(*words, "prompts.text", cwd=project), "did you mean prompts.txt?")
