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


def command(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "codegen_jax", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def assert_fails(result, *texts):
    """Assert exit code 2 and a single line on stderr, an error that contains these texts."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    assert lines[0].startswith("codegen-jax: error: ") and all(str(text) in lines[0] for text in texts), lines[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory, texts):
    """A folder with shards, a tokenizer, token files and a trained run, the last three made by the command."""
    root = tmp_path_factory.mktemp("project")
    write_shard(root / "shards/0.jsonl.zst", texts[::2])
    write_shard(root / "shards/1.jsonl.zst", texts[1::2])
    for args in (
        ["tokenizer", "train", "shards", "--output", "tokenizer", "--vocab-size", "512"],
        ["prepare", "shards", "--output", "tokens", "--tokenizer", "tokenizer", "--workers", "2"],
    ):
        result = command(*args, cwd=root)
        assert result.returncode == 0, result.stderr
    config = tiny_run("run", "tokens", data={"validation": "tokens"}).to_dict()
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    result = command("train", "run.yaml", "--training.steps", "4", cwd=root)
    assert result.returncode == 0, result.stderr
    assert "step      4  loss" in result.stdout and "validation loss" in result.stdout
    assert "Traceback" not in result.stderr and "WARNING" not in result.stderr, result.stderr
    return root


def test_prepare_shows_its_chat_template():
    printed = command("prepare", "--show-template", cwd=ROOT)
    assert printed.returncode == 0 and "{%- generation -%}" in printed.stdout and not printed.stderr


PAIRS = ["prepare", "shards", "--output", "new", "--tokenizer", "tokenizer", "--format", "pairs"]


def test_prepare_reports_dropped_documents(project):
    lines = [{"text": t, "meta": {"path": p}} for t, p in (("x = 1\n", "a.py"), ("x = 1\n", "b.py"), ("?", "c.txt"))]
    (project / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json")
    args = ["prepare", "raw.jsonl", "--output", "filtered", "--tokenizer", "tokenizer", "--filters", "code"]
    result = command(*args, "--extensions", ".py", ".md", "--dedup", "exact", cwd=project)
    assert result.returncode == 0
    assert result.stderr == "codegen-jax: filtered: reading 1 .jsonl (0.0 MB)\n"
    *rows, last = result.stdout.splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["source", "unknown", "all"]
    assert rows[3:] == [
        "dropped while reading: 1 line (not JSON); the first is line 4 of raw.jsonl: 'not json'",
        "dropped by code rules: 1 document (file extension)",
        "dropped by dedup: 1 document (duplicate)",
    ]
    assert "tokens in 1 documents" in last
    assert_fails(command(*args[:-2], "--extensions", ".py", cwd=project), "--extensions", "--filters code")
    assert_fails(
        command(*args, "--executor-option", "x", cwd=project), "--executor-option: must be NAME=VALUE, got 'x'"
    )


def test_data_show_prints_the_tokens_of_a_step(project):
    result = command("data", "show", "run.yaml", "--step", 2, "--row", 3, "--data.sequence_length", 8, cwd=project)
    assert result.returncode == 0 and result.stdout.startswith("== step 2, row 3: epoch 0, window "), result.stderr
    assert 8 <= result.stdout.count("│") <= 9
    assert_fails(command("data", "show", "run.yaml", "--step", 0, cwd=project), "--step", "0")


def test_generate_prints_one_object_per_completion(project):
    result = command(
        "generate", "run", "--prompt", "def f(", "--prompt", "class A", "--num-samples", 2, "--max-new-tokens", 5,
        "--json", cwd=project,
    )  # fmt: skip
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["def f(", "def f(", "class A", "class A"]
    assert all(row.keys() == {"prompt", "completion", "token_ids", "finish_reason"} for row in rows)
    assert all(len(row["token_ids"]) <= 5 for row in rows)


def test_generate_prints_prompt_and_completion(project):
    args = ["generate", find_checkpoint(project / "run"), "--prompt", "def f(", "--max-new-tokens", 5]
    text = command(*args, cwd=project).stdout
    row = json.loads(command(*args, "--json", cwd=project).stdout)
    assert text == row["prompt"] + row["completion"] + "\n"


def test_generate_with_streams_drafts_and_logprobs(project):
    args = ["generate", "run", "--prompt", "def f(", "--max-new-tokens", 12, "--temperature", 0]
    text = command(*args, cwd=project).stdout
    assert command(*args, "--stream", cwd=project).stdout == text
    drafted = command(*args, "--draft", "lookup", "--num-guesses", 4, cwd=project)
    assert drafted.stdout == text and " draft tokens accepted (" in drafted.stderr
    assert drafted.stderr.count("warning") == 1
    assert "codegen-jax: warning: --num-guesses is deprecated; use --num-draft-tokens\n" in drafted.stderr
    row = json.loads(command(*args, "--logprobs", 2, "--json", cwd=project).stdout)
    assert len(row["logprobs"]) == len(row["top_logprobs"]) == len(row["token_ids"])
    assert all(len(top) == 2 for top in row["top_logprobs"])


def test_results_of_nonfinite_weights_are_valid_json(project, tmp_path):
    model = peer(vocab_size=512)
    model.lm_head.bias.data[7] = float("nan")
    folder = save(model, tmp_path / "model", tokenizer=load_tokenizer(project / "tokenizer"))
    args = ["--json", "--allow-nonfinite"]
    options = ["--prompt", "def f(", "--max-new-tokens", 2, "--logprobs", 1]
    generated = command("generate", folder, *options, *args, cwd=project)
    assert strictly(generated.stdout)["logprobs"] == [None, None]
    evaluated = command("evaluate", folder, "perplexity", "tokens", "--max-windows", 1, *args, cwd=project)
    assert strictly(evaluated.stdout) | {"tokens": 0} == {
        "weights": "whole", "tokens": 0, "loss": None, "perplexity": None, "bits_per_byte": None,
    }  # fmt: skip
    assert all(
        "lm_head.bias contains nan; the weights are used unchanged" in result.stderr
        for result in (generated, evaluated)
    )
    refused = command("generate", folder, *options, "--json", cwd=project)
    assert refused.returncode == 2 and "lm_head.bias contains nan: " in refused.stderr and not refused.stdout


def test_evaluate_prints_the_perplexity_and_its_increase_with_int8(project):
    args = ["evaluate", "run", "perplexity", "tokens", "--max-windows", 8, "--quantize", "int8"]
    unquantized, int8, difference = command(*args, "--sequence-length", 32, cwd=project).stdout.splitlines()
    assert unquantized.startswith("unquantized: 256 tokens: loss ") and int8.startswith("int8: 256 tokens: loss ")
    assert re.fullmatch(r"int8 changes the perplexity by [+-]0\.\d{3}%", difference)


def test_train_resumes_a_run(project):
    result = command("train", "run.yaml", "--training.steps", 5, "--training.log_every", 1, cwd=project)
    assert "resuming run after step 4" in result.stdout and "step      5  loss" in result.stdout


def test_a_runs_output_folder_serves_as_its_config_even_if_moved(project, tmp_path):
    moved = shutil.copytree(project / "run", tmp_path / "moved")
    steps = len({line["step"] for line in read_metrics(moved) if "loss" in line})
    result = command("train", moved, "--training.steps", steps + 1, cwd=project)
    assert f"resuming {moved} after step {steps}" in result.stdout, result.stderr
    assert read_metrics(moved)[-1]["step"] == steps + 1
    assert len(read_metrics(project / "run")) < len(read_metrics(moved))
    shown = yaml.safe_load(command("config", "show", f"{moved}/", "--seed", 7, cwd=project).stdout)
    assert (shown["output"], shown["seed"], shown["model"]["n_layer"]) == (str(moved), 7, 2)
    args = ["--step", 1, "--row", 0]
    from_folder, from_file = (
        command("data", "show", config, *args, cwd=project).stdout for config in (moved, "run.yaml")
    )
    assert from_folder == from_file != ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "none.yaml"], ["none.yaml"]),
        (["data", "show", "tokens", "--step", "1"], ["tokens: not a run's output folder, as it has no run.json"]),
        (["train", "run", "--model.n_layr", "5"], ["--model.n_layr"]),
        (["generate", "run", "--prompt", "x", "--logprobs", "2"], ["--logprobs: ", "--json"]),
        (["train", "run.yaml", "--model.n_head", "5"], ["model.n_head", "5"]),
        (["train", "run.yaml", "--model.n_layr", "5"], ["model.n_layr"]),
        (["train", "run.yaml", "--mesh.fsdp", "3"], ["mesh", "8 device"]),
        (["train", "run.yaml", "--seed", "9"], ["output", "run contains another run", "seed"]),
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
        (["generate", "shards", "--prompt", "x"], ["shards", "no complete checkpoint"]),
        (["generate", "run", "--prompt", ""], ["--prompt"]),
        (["convert", "run", "tokens"], ["tokens", "not an empty folder"]),
        (["convert", "shards", "new"], ["shards", "no complete checkpoint", "config.json"]),
        (["convert", "run", "run.yaml/new", "--to", "hf"], ["run.yaml", "Not a directory"]),
        (["convert", "run", "new", "--to", "hf", "--mp-num", "3"], ["--mp-num", "3", "4 heads"]),
        (["convert", "run", "new", "--mp-num", "0"], ["--mp-num: must be positive, got 0"]),
        (["convert", "run", "new", "--verify"], ["--verify", "both in our format"]),
        (["convert", "run", "new", "--whitespace-tokens"], ["--whitespace-tokens", "--tokenizer"]),
        (["convert", "run", "new", "--to", "hf", "--tokenizer", "shards"], ["shards", "tokenizer"]),
        (["train", "run.yaml", "--output", "new", "--init_from", "shards"], ["shards", "no complete checkpoint"]),
        (["train", "run.yaml", "--output", "new", "--init_from", "absent"], ["absent", "not found on this machine"]),
        (["generate", "run", "--prompt", "x", "--temperature", "-1"], ["--temperature"]),
        (["generate", "run", "--prompt", "x", "--suffix", "y"], ["--suffix: this model was not trained", "--fim-rate"]),
        ([*PAIRS, "--fields", "prompt"], ["--fields: must be NAME=FIELD,..., got 'prompt'"]),
        ([*PAIRS, "--sequence-length", "0"], ["--sequence-length: must be positive, got 0"]),
        ([*PAIRS, "--fim-rate", "1"], ["--fim-rate: requires --format text, got pairs"]),
        ([*PAIRS[:-1], "messages", "--template", "none.jinja"], ["none.jinja"]),
        ([*PAIRS[:-1], "messages", "--template", "run.yaml"], ["--template: does not mark the assistant's turns"]),
        (["generate", "$NO_SUCH/run", "--prompt", "x"], ["MODEL: $NO_SUCH/run: environment variable NO_SUCH"]),
        (["convert", "run", "~no_such/new"], ["DESTINATION: ~no_such/new: no such home"]),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_changes_nothing(project, args, message):
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    assert_fails(command(*args, cwd=project), *message)
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()} == before


def test_too_little_memory_for_a_request_names_the_flag(project):
    result = command("generate", "run", "--prompt", "x", "--max-kv-bytes", "1", cwd=project)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("codegen-jax: error: --max-kv-bytes: 0.00 GiB are too little for ")


def test_home_and_variables_are_expanded_in_paths_but_not_in_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    args = ["prepare", "~/a", "$DATA/*.jsonl", "--output", "~/b", "--tokenizer", "${DATA}/c", "--decontaminate", "~/d"]
    arguments = make_parser().parse_args(args)
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
        "ID=BIAS",
        "NAME=VALUE",
        "NAME=FIELD,...",
        ".EXT",
        "SLICE",
        "KIND",
        "SECONDS",
        "VERB",
        "BENCHMARK",
        "ACTION",
        None,
    }
    assert {action.metavar for action in every_action(make_parser())} - others == PATHS


def every_action(parser):
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from every_action(verb)


def test_a_worker_process_names_an_unreadable_shard(project, tmp_path):
    for number in range(2):
        shard = write_shard(tmp_path / f"shards/{number}.jsonl.zst", ["x = 1\n" * 1000])
    Path(shard).write_bytes(Path(shard).read_bytes()[:20])
    args = ["prepare", "shards", "--output", "out", "--tokenizer", project / "tokenizer", "--workers", "2"]
    result = command(*args, cwd=tmp_path)
    first, _, result.stderr = result.stderr.partition("\n")
    assert first == "codegen-jax: out: reading 2 .jsonl.zst (0.0 MB)"
    assert_fails(result, "shards/1.jsonl.zst", "can't be read")


def test_unknown_arguments_are_rejected(project):
    result = command("generate", "run", "--prompt", "x", "--top_p", "0.5", cwd=project)
    assert result.returncode == 2 and "--top_p" in result.stderr and "Traceback" not in result.stderr


def test_convert_prints_its_output_and_the_verification(project, tmp_path):
    result = command("convert", project / "run", tmp_path / "hf", "--to", "hf", "--verify", cwd=project)
    assert result.returncode == 0 and result.stderr == "codegen-jax: verifying against NumPy\n", result.stderr
    written, proof = result.stdout.splitlines()
    n_params = load_config(project / "run.yaml").model.n_params
    assert written.startswith(f"{tmp_path / 'hf'}: {n_params:,} parameters") and "GiB" in written
    assert proof.startswith("verified: largest difference") and "greedy agreement 100.0%" in proof


def test_abbreviations_are_rejected_with_the_nearest_name(project):
    args = ["prepare", "shards", "--output", "new", "--tokenizer", "tokenizer", "--filter", "code"]
    assert_fails(command(*args, cwd=project), "--filter: not an argument", "did you mean --filters?")
    args = ["generate", "run", "--prompt", "x", "--max-new-token", "5"]
    assert_fails(command(*args, cwd=project), "--max-new-token: not an argument", "did you mean --max-new-tokens?")
    assert_fails(
        command("generate", "run", "--prompt", "x", "--top-k", "many", cwd=project),
        "--top-k: must be an integer, got 'many'",
    )
    assert_fails(command("generate", "run", cwd=project), "--prompt", "codegen-jax generate --help")


def test_config_show_prints_the_settings_of_a_run(project):
    shown = command("config", "show", "run.yaml", "--training.steps", 9, "--mesh.fsdp", -1, cwd=project)
    config = yaml.safe_load(shown.stdout)
    assert (config["training"]["steps"], config["training"]["remat"]) == (9, "dots")
    assert (config["mesh"]["fsdp"], config["model"]["attention"], config["model"]["head_dim"]) == (8, "xla", 8)
    shown = command("config", "show", "run.yaml", "--mesh.fsdp", 3, cwd=project)
    assert "mesh: data 1 x fsdp 3" in shown.stderr and yaml.safe_load(shown.stdout)["mesh"]["fsdp"] == 3


def test_train_help_lists_all_config_fields(project):
    text = " ".join(command("train", "--help", cwd=project).stdout.split())
    assert "--model.n_layer N_LAYER number of blocks. (required, type: int)" in text


def test_a_draft_model_with_another_tokenizer_is_rejected_by_flag(project):
    from tests.peers import tiny_bpe

    save(peer(), project / "other", tokenizer=tiny_bpe())
    args = ["generate", "run", "--prompt", "x", "--draft", "other"]
    assert_fails(command(*args, cwd=project), "--draft: the draft model must have the model's tokenizer")


def test_stop_strings_may_be_repeated(project):
    args = ["generate", "run", "--prompt", "def f(", "--max-new-tokens", 12, "--temperature", 0, "--json"]
    text = json.loads(command(*args, cwd=project).stdout)["completion"]
    cut = command(*args, "--stop-string", "never", "--stop-string", text[-1], cwd=project)
    row = json.loads(cut.stdout)
    assert (row["completion"], row["finish_reason"]) == (text[: text.index(text[-1])], "stop")


def test_a_path_named_like_a_flag_is_a_path(project):
    (project / "draft").mkdir()
    assert_fails(command("generate", "draft", "--prompt", "x", cwd=project), "error: draft: no complete checkpoint")


def test_a_config_may_have_brackets_in_its_name(project):
    (project / "run[1].yaml").write_text((project / "run.yaml").read_text())
    assert command("config", "show", "run[1].yaml", cwd=project).returncode == 0


DECODE_PLAN = ["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "run", "--prompt", "x", "--data", "0"], "--data: must be positive, got 0"),
        (
            ["data", "show", "run.yaml", "--step", "1", "--ro", "3"],
            "--ro: not an argument of codegen-jax data show; did",
        ),
        (["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode", "--fit"], "--fit: requires --mode train"),
        (
            ["plan", "run.yaml", "--topology", "v4-8", "--mode", "decode", "--tensor", "0"],
            "--tensor: must be positive, got 0",
        ),
        (["plan", "run.yaml"], "--topology: missing; give a slice, such as v4-512, or --all"),
        (["plan", "--topology", "v4-8"], "CONFIG: missing; give a config"),
        (["plan", "--all", "v4", "v9"], "--all: kinds of TPU are v4, v5p, v5e, v6e, got v9"),
        (["plan", "--all", "v4", "--fit"], "--fit: can't be used with --all"),
        (["plan", "--all", "v4", "--batch-size", "8"], "--batch-size: can't be used with --all"),
        (
            ["plan", "--all", "v4", "--training.batch_size", "512"],
            "--all: fields need CONFIG, as in: codegen-jax plan 16b",
        ),
        (["plan", "--all", "v4", "--training.batch_size=512"], "--all: fields need CONFIG"),
        (["train", "run.yaml", "--output", "--seed"], "--output: must be followed by a value"),
    ],
)
def test_the_invalid_flag_is_named(project, args, message):
    assert_fails(command(*args, cwd=project), message)


def test_ctrl_c_ends_a_plan_during_an_uninterruptible_compilation():
    code = (
        "import hashlib, sys\nfrom codegen_jax.cli import main, plan\n"
        "def make(_):\n    print('compiling', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
        "plan.make = make\nmain(['plan', 'run.yaml', '--topology', 'v4-8'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "codegen-jax: error: interrupted\n"
    assert process.returncode == 130


def without_reader(*args, cwd, stderr=subprocess.PIPE, program=("-m", "codegen_jax")):
    """The exit code and stderr of the command if the reader of its output has already exited."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": ""}
    args = [sys.executable, *program, *map(str, args)]
    result = subprocess.run(args, stdout=writer, stderr=stderr or writer, text=True, cwd=cwd, env=environment)
    os.close(writer)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["data", "show", "run.yaml", "--step", "1"], 141),
        (["config", "show", "run.yaml"], 141),
        (["generate", "run", "--prompt", "x", "--max-new-tokens", "3"], 141),
        (["generate", "run", "--prompt", "x", "--max-new-tokens", "3", "--stream"], 141),
        (["train", "--help"], 141),
        (["--help"], 0),
    ],
)
def test_a_command_without_a_reader_exits_silently(project, args, code):
    assert without_reader(*args, cwd=project) == (code, "")


def test_a_plan_without_a_reader_exits_silently():
    printing = (
        "from codegen_jax.cli import main, plan\nplan.make = lambda _: print('x' * 100_000)\n"
        "main(['plan', 'run.yaml', '--topology', 'v4-8'])"
    )
    assert without_reader(cwd=ROOT, program=("-c", printing)) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_disk_is_an_error(project):
    with open("/dev/full", "w") as full:
        args = [sys.executable, "-m", "codegen_jax", "config", "show", "run.yaml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
        result = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, text=True, cwd=project, env=environment)
    assert_fails(result, "No space left on device")


@pytest.mark.parametrize("stderr", [subprocess.PIPE, None])
def test_a_training_run_continues_without_a_reader_of_its_log(project, tmp_path, stderr):
    args = ["train", "run.yaml", "--output", tmp_path / "run", "--training.steps", 3]
    assert without_reader(*args, cwd=project, stderr=stderr) == (0, "" if stderr else None)
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    assert find_checkpoint(tmp_path / "run").name == "3"
    assert "outcome: finished" in (tmp_path / "run/summary.md").read_text()


def test_generate_reads_prompts_from_a_file_or_standard_input(project):
    args = ["generate", "run", "--max-new-tokens", 3, "--json", "--prompt-file"]
    (project / "prompts.txt").write_text("def f(\n\nclass A\n")
    rows = [json.loads(line) for line in command(*args, "prompts.txt", cwd=project).stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["def f(", "class A"]
    assert_fails(command(*args, "prompts.text", cwd=project), "did you mean prompts.txt?")
