"""The records of a run for people to look at: log lines, metrics, samples, events, a trace and a summary."""

import io
import math
import struct
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from codegen_jax import progress
from codegen_jax.config import SourceConfig
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.errors import RUN_LOG, UserError
from codegen_jax.training.clock import Clock
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import MetricsLog, read_lines, read_metrics
from codegen_jax.training.reporter import Reporter
from codegen_jax.training.summary import write_summary
from codegen_jax.weights.checkpoint_format import CheckpointWeights
from codegen_jax.weights.run_folder import find_checkpoint
from tests.runs import tiny_run

PROMPTS = ["def f(x):", "import"]


def observed(output, tokens, **training):
    training = {"sample_prompts": PROMPTS, "sample_tokens": 5, "wandb_project": "tests", "log_every": 2} | training
    return tiny_run(
        output, tokens, data={"validation": str(tokens)}, training=training, profile={"start": 2, "steps": 2}
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory, token_folder):
    """The output of a run that was stopped after step 4 and resumed, with validation and profiling."""
    folder = tmp_path_factory.mktemp("observed") / "a_run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        train(observed(folder, token_folder, steps=4))
        train(observed(folder, token_folder))
    return folder


def events(folder):
    """All TensorBoard events, file by file."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_samples_of_each_prompt_are_kept_at_each_validation(output):
    samples = read_lines(output / "samples.jsonl")
    made = [(sample["step"], sample["prompt"]) for sample in samples]
    assert made == [(step, prompt) for step in (2, 3, 4, 6) for prompt in PROMPTS]
    assert any(sample["completion"] for sample in samples)


def test_every_number_is_in_the_log_and_in_tensorboard(output):
    logged = {
        (line["step"], name): value for line in read_metrics(output) for name, value in line.items() if name != "step"
    }
    shown = {
        (event.step, value.tag): value.simple_value
        for event in events(output)
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    assert logged.keys() == shown.keys()
    assert all(math.isclose(logged[key], shown[key], rel_tol=1e-6) for key in logged)
    assert {"loss", "grad_norm", "tokens_per_second", "goodput", "skipped"} <= {name for _, name in logged}
    assert all(0 < line["goodput"] < 1 for line in read_metrics(output) if "loss" in line)


def test_weights_and_biases_gets_the_run_when_asked(output):
    assert len(list(output.glob("wandb/offline-run-*/run-a_run.wandb"))) == 2


def test_a_window_of_steps_is_traced(output):
    (trace,) = (output / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_the_summary_tells_the_outcome_the_loss_and_where_the_time_went(output):
    text = (output / "summary.md").read_text()
    last = [line for line in read_metrics(output) if "loss" in line][-1]
    assert text.startswith("# a_run\n\n- outcome: finished\n- steps: 6 of 6\n")
    assert f"- loss: {last['loss']:.4f}" in text and "- best validation loss: " in text
    assert "![loss](loss.png)" in text and (output / "loss.png").exists()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ") and "%" in line]
    shares = {cause.strip(): float(share.strip().rstrip("%")) for cause, _, share in rows}
    assert {"steps", "compile", "checkpoint", "validation", "data"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert "  n_embd: 32\n" in text


def test_lines_tell_the_start_the_steps_and_the_validations(tmp_path, token_folder, caplog):
    caplog.set_level("INFO", RUN_LOG)
    train(observed(tmp_path / "run", token_folder, steps=4, wandb_project=None))
    lines = [record.getMessage() for record in caplog.records if record.name == RUN_LOG]
    assert lines[3].startswith("first step done after ") and "compile" in lines[3]
    assert [line.split("  loss")[0] for line in lines if "  loss" in line] == [f"step {n:>6}" for n in (1, 2, 4)]
    assert any(line.startswith("step      2  validation loss ") for line in lines)
    assert any(line.startswith(f"step      3  sample: {PROMPTS[0]!r} -> ") for line in lines)
    assert lines[-1] == f"summary: {tmp_path / 'run/summary.md'}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_shows_the_steps_that_are_done_and_the_last_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0)
    reporter = Reporter(tiny_run(), None, Clock(), first=2, epochs=lambda _: {})
    for step, loss in ((3, 1.5), (4, 1.25)):
        others = dict(cross_entropy=loss, grad_norm=1.0, learning_rate=0.1, bad_steps=0, skipped=0)
        reporter.step(step, {"loss": loss} | others)
    reporter.close()
    shown = sys.stderr.getvalue().split("\r")[-1]
    assert " 4/6 " in shown and "loss 1.250, " in shown and " tokens/" in shown


def test_the_first_lines_tell_what_is_trained_on_what_and_how_far(tmp_path, token_folder, caplog):
    train(tiny_run(tmp_path / "run", token_folder, training={"steps": 2}))
    caplog.set_level("INFO", RUN_LOG)
    config = tiny_run(tmp_path / "run", token_folder, training={"steps": 6})
    train(config)
    lines = [record.getMessage() for record in caplog.records if record.name == RUN_LOG]
    files = TokenFiles(token_folder)
    tokens, windows = files.manifest.tokens, Windows(files, 32)
    assert tokens == 1 + 32 * len(windows) + windows.left
    weights = CheckpointWeights(find_checkpoint(tmp_path / "run"))
    parameters = sum(math.prod(array.shape) for array in weights.arrays.values())
    assert lines[1:4] == [
        f"{parameters:,} parameters on cpu x 8, 1 process(es); mesh data 1, fsdp 8, tensor 1",
        f"{token_folder}: {tokens:,} tokens in 2 file(s), {len(windows):,} windows of 32; {windows.left} left over",
        "4 of 6 steps to come, of 512 tokens each: 2,048 tokens",
    ]


def reported(folder, steps, log_every):
    """The logged lines for steps with the given (loss, bad_steps)."""
    log = MetricsLog(folder, 0)
    config = tiny_run(training={"steps": 100, "log_every": log_every})
    reporter = Reporter(config, log, Clock(), 0, lambda step: {})
    zero = np.float32(0)
    for number, (loss, bad) in enumerate(steps, 1):
        loss = np.float32(loss)
        rest = {"cross_entropy": loss, "grad_norm": zero, "learning_rate": zero, "skipped": np.int32(bad > 0)}
        reporter.step(number, {"loss": loss, "bad_steps": np.int32(bad)} | rest)
    log.close()
    return [(line["step"], line["loss"], line["bad_steps"]) for line in read_metrics(folder)]


def test_a_logged_loss_is_the_mean_since_the_line_before(tmp_path):
    steps = [(9, 0), (5, 0), (1, 0), (2, 0), (4, 0), (7, 0)]
    assert reported(tmp_path, steps, log_every=3) == [(1, 9, 0), (3, 3, 0), (6, pytest.approx(13 / 3, rel=1e-15), 0)]
    assert math.log(read_metrics(tmp_path)[-1]["perplexity"]) == pytest.approx(13 / 3)


def test_the_mean_of_one_step_is_its_loss_to_the_bit(tmp_path):
    losses = np.random.default_rng(0).random(20, np.float32)
    lines = reported(tmp_path, [(loss, 0) for loss in losses], log_every=1)
    assert [loss for _, loss, _ in lines] == losses.tolist()


@pytest.mark.parametrize(("loss", "logged"), [(1e9, 1e9), (math.nan, None), (math.inf, None)])
def test_a_skipped_step_has_a_line_of_its_own_and_no_part_in_the_mean(tmp_path, loss, logged):
    steps = [(9, 0), (5, 0), (loss, 1), (2, 0), (loss, 1), (loss, 2), (2, 0), (6, 0)]
    lines = reported(tmp_path, steps, log_every=4)
    assert lines == [(1, 9, 0), (3, logged, 1), (4, 3.5, 0), (5, logged, 1), (6, logged, 2), (8, 4, 0)]


def test_numbers_that_are_not_finite_are_not_shown_to_tensorboard(tmp_path, caplog):
    reported(tmp_path, [(3, 0), (math.nan, 1), (math.inf, 1)], log_every=1)
    shown = {(event.step, value.tag) for event in events(tmp_path) for value in event.summary.value}
    assert (1, "loss") in shown and (2, "loss") not in shown and (2, "grad_norm") in shown
    assert not caplog.records


def test_the_summary_has_the_speed_of_the_whole_launch(tmp_path):
    reported(tmp_path, [(3, 0)] * 4, log_every=1)
    clock = Clock()
    clock.began -= 1000  # seconds ago
    clock.spent["compile"] = 200.0
    write_summary(tiny_run(), tmp_path, clock, steps=4, outcome="finished")
    assert f"- tokens/s: {4 * 16 * 32 / 800:,.0f}\n" in (tmp_path / "summary.md").read_text()


def test_the_mean_that_picks_a_mixtures_best_checkpoint_has_a_line(tmp_path, token_folder, caplog):
    caplog.set_level("INFO", RUN_LOG)
    sources = {
        name: SourceConfig(str(token_folder), weight, str(token_folder)) for name, weight in (("a", 1.0), ("b", 3.0))
    }
    data = {"train": None, "sources": sources}
    train(tiny_run(tmp_path / "run", data=data, training={"steps": 1}))
    (logged,) = [line for line in read_metrics(tmp_path / "run") if "validation_loss" in line]
    said = [record.getMessage() for record in caplog.records if "validation loss" in record.getMessage()]
    mean = f"validation loss {logged['validation_loss']:.4f}  the mean by weight, which picks the best checkpoint"
    assert said[0] == f"step      1  {mean}"
    assert [line.split()[2] for line in said[1:]] == ["a", "b"] and "perplexity" in said[1]


def test_wandb_that_is_not_installed_is_named_before_anything_is_made(tmp_path, token_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("codegen_jax.training.metrics.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"training.wandb_project: wandb is not installed"):
        train(observed(tmp_path / "run", token_folder))
    assert not (tmp_path / "run").exists()
