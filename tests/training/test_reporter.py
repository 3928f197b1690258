"""A run's output for people: log lines, metrics, samples, TensorBoard events, profile and summary."""

import io
import math
import struct
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
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


def run_config(output, tokens, **training):
    training = {"sample_prompts": PROMPTS, "sample_tokens": 5, "wandb_project": "tests", "log_every": 2} | training
    return tiny_run(
        output, tokens, data={"validation": str(tokens)}, training=training, profile={"start": 2, "steps": 2}
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory, token_folder):
    """The output of a run that was stopped after step 4 and resumed, with validation and profiling."""
    folder = tmp_path_factory.mktemp("reporter") / "a_run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        train(run_config(folder, token_folder, steps=4))
        train(run_config(folder, token_folder))
    return folder


def events(folder):
    """All TensorBoard events, file by file."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_each_prompt_is_sampled_at_each_validation(output):
    samples = read_lines(output / "samples.jsonl")
    logged = [(sample["step"], sample["prompt"]) for sample in samples]
    assert logged == [(step, prompt) for step in (2, 3, 4, 6) for prompt in PROMPTS]
    assert any(sample["completion"] for sample in samples)


def test_metrics_log_and_tensorboard_have_the_same_values(output):
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


def test_tensorboard_reads_every_scalar_of_a_run(output):
    """TensorBoard's own reader, which `tensorboard --logdir` uses; the extra [tensorboard] installs it."""
    shown = EventAccumulator(str(output / "tensorboard")).Reload()
    read = {(event.step, name) for name in shown.Tags()["scalars"] for event in shown.Scalars(name)}
    assert read == {(line["step"], name) for line in read_metrics(output) for name in line if name != "step"}


def test_run_is_logged_to_weights_and_biases_if_configured(output):
    assert len(list(output.glob("wandb/offline-run-*/run-a_run.wandb"))) == 2


def test_profile_is_written(output):
    (trace,) = (output / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_summary_has_outcome_losses_and_wall_time(output):
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


def test_log_lines_cover_start_steps_validations_and_samples(tmp_path, token_folder, caplog):
    caplog.set_level("INFO", RUN_LOG)
    train(run_config(tmp_path / "run", token_folder, steps=4, wandb_project=None))
    lines = [record.getMessage() for record in caplog.records if record.name == RUN_LOG]
    assert lines[3].startswith("first step done after ") and "compile" in lines[3]
    assert [line.split("  loss")[0] for line in lines if "  loss" in line] == [f"step {n:>6}" for n in (1, 2, 4)]
    assert any(line.startswith("step      2  validation loss ") for line in lines)
    assert any(line.startswith(f"step      3  sample: {PROMPTS[0]!r} -> ") for line in lines)
    assert lines[-1] == f"summary: {tmp_path / 'run/summary.md'}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_on_a_terminal_shows_completed_steps_and_last_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0)
    reporter = Reporter(tiny_run(), None, Clock(), first=2, epochs=lambda _: {})
    for step, loss in ((3, 1.5), (4, 1.25)):
        others = dict(cross_entropy=loss, grad_norm=1.0, learning_rate=0.1, bad_steps=0, skipped=0)
        reporter.step(step, {"loss": loss} | others)
    reporter.close()
    shown = sys.stderr.getvalue().split("\r")[-1]
    assert " 4/6 " in shown and "loss 1.250, " in shown and " tokens/" in shown


def test_first_lines_describe_model_devices_data_and_steps(tmp_path, token_folder, caplog):
    train(tiny_run(tmp_path / "run", token_folder, training={"steps": 2}))
    caplog.set_level("INFO", RUN_LOG)
    config = tiny_run(tmp_path / "run", token_folder, training={"steps": 6})
    train(config)
    lines = [record.getMessage() for record in caplog.records if record.name == RUN_LOG]
    files = TokenFiles(token_folder)
    tokens, windows = files.manifest.tokens, Windows(files, 32)
    assert tokens == 1 + 32 * len(windows) + windows.leftover
    weights = CheckpointWeights(find_checkpoint(tmp_path / "run"))
    parameters = sum(math.prod(array.shape) for array in weights.arrays.values())
    assert lines[1:4] == [
        f"{parameters:,} parameters on cpu x 8, 1 process(es); mesh data 1, fsdp 8, tensor 1",
        f"{token_folder}: {tokens:,} tokens in 2 file(s), {len(windows):,} windows of 32; "
        f"{windows.leftover} tokens left over",
        "training steps 3 to 6, 512 tokens each (2,048 in total)",
    ]


def reported(folder, steps, log_every):
    """Report steps with the given (loss, bad_steps); return step, loss and bad_steps of each logged line."""
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


def test_logged_loss_is_the_mean_since_the_previous_line(tmp_path):
    steps = [(9, 0), (5, 0), (1, 0), (2, 0), (4, 0), (7, 0)]
    assert reported(tmp_path, steps, log_every=3) == [(1, 9, 0), (3, 3, 0), (6, pytest.approx(13 / 3, rel=1e-15), 0)]
    assert math.log(read_metrics(tmp_path)[-1]["perplexity"]) == pytest.approx(13 / 3)


def test_mean_of_one_step_is_exactly_its_loss(tmp_path):
    losses = np.random.default_rng(0).random(20, np.float32)
    lines = reported(tmp_path, [(loss, 0) for loss in losses], log_every=1)
    assert [loss for _, loss, _ in lines] == losses.tolist()


@pytest.mark.parametrize(("loss", "logged"), [(1e9, 1e9), (math.nan, None), (math.inf, None)])
def test_skipped_step_has_its_own_line_and_is_excluded_from_the_mean(tmp_path, loss, logged):
    steps = [(9, 0), (5, 0), (loss, 1), (2, 0), (loss, 1), (loss, 2), (2, 0), (6, 0)]
    lines = reported(tmp_path, steps, log_every=4)
    assert lines == [(1, 9, 0), (3, logged, 1), (4, 3.5, 0), (5, logged, 1), (6, logged, 2), (8, 4, 0)]


def test_nonfinite_values_are_omitted_from_tensorboard(tmp_path, caplog):
    reported(tmp_path, [(3, 0), (math.nan, 1), (math.inf, 1)], log_every=1)
    shown = {(event.step, value.tag) for event in events(tmp_path) for value in event.summary.value}
    assert (1, "loss") in shown and (2, "loss") not in shown and (2, "grad_norm") in shown
    assert not caplog.records


def test_summary_has_the_average_speed_of_the_launch(tmp_path):
    reported(tmp_path, [(3, 0)] * 4, log_every=1)
    clock = Clock()
    clock.began -= 1000  # seconds ago
    clock.spent["compile"] = 200.0
    write_summary(tiny_run(), tmp_path, clock, steps=4, outcome="finished")
    assert f"- tokens/s: {4 * 16 * 32 / 800:,.0f}\n" in (tmp_path / "summary.md").read_text()


def test_weighted_mean_of_a_mixture_has_its_own_line(tmp_path, token_folder, caplog):
    caplog.set_level("INFO", RUN_LOG)
    sources = {
        name: SourceConfig(str(token_folder), weight, str(token_folder)) for name, weight in (("a", 1.0), ("b", 3.0))
    }
    data = {"train": None, "sources": sources}
    train(tiny_run(tmp_path / "run", data=data, training={"steps": 1}))
    (logged,) = [line for line in read_metrics(tmp_path / "run") if "validation_loss" in line]
    messages = [record.getMessage() for record in caplog.records if "validation loss" in record.getMessage()]
    mean = f"validation loss {logged['validation_loss']:.4f}  (weighted mean; selects the best checkpoint)"
    assert messages[0] == f"step      1  {mean}"
    assert [line.split()[2] for line in messages[1:]] == ["a", "b"] and "perplexity" in messages[1]


def test_missing_wandb_is_reported_before_anything_is_written(tmp_path, token_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("codegen_jax.training.metrics.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"training.wandb_project: wandb is not installed"):
        train(run_config(tmp_path / "run", token_folder))
    assert not (tmp_path / "run").exists()
