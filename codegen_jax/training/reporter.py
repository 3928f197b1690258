"""A run's progress output: log lines, a progress bar, and the metrics behind them."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from codegen_jax.chips import GIB, chip_of
from codegen_jax.config import RunConfig
from codegen_jax.data.sources import Source
from codegen_jax.data.tokens import Windows
from codegen_jax.distributed import is_first, log_once
from codegen_jax.progress import Progress
from codegen_jax.training.clock import Clock
from codegen_jax.training.loss import perplexity
from codegen_jax.training.metrics import MetricsLog
from codegen_jax.training.resolve import ResolvedRun
from codegen_jax.training.step import abstract_state


def announce(run: ResolvedRun, sources: list[Source], first: int) -> None:
    """Log the model, devices, data and steps of a run that starts after step `first`."""
    devices, training = run.mesh.devices.flat, run.training
    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    size = f"{run.model.n_params:,} parameters"
    if run.adapter.rank:
        trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_state(run).params))
        size = f"{size} and {trained:,} of an adapter of {', '.join(run.adapter.modules)}"
    log_once(f"{size} on {devices[0].device_kind} x {len(devices)}, {jax.process_count()} process(es); mesh {axes}")
    for source in sources:
        files, rows, manifest = source.files, source.rows, source.files.manifest
        size = f"{files.folder}: {manifest.tokens:,} tokens in {len(files.arrays):,} file(s)"
        if isinstance(rows, Windows):
            log_once(f"{size}, {len(rows):,} windows of {run.sequence_length:,}; {rows.leftover:,} tokens left over")
        else:
            full = manifest.tokens / (len(rows) * (run.sequence_length + 1))
            filled = f"{len(rows):,} rows of {run.sequence_length:,}, {full:.1%} full"
            log_once(f"{size}, {manifest.trained_tokens:,} trained; {manifest.documents:,} examples in {filled}")
    tokens_per_step = training.batch_size * run.sequence_length
    if first >= training.steps:
        log_once(f"all {training.steps:,} steps are done")
        return
    total = (training.steps - first) * tokens_per_step
    log_once(
        f"training steps {first + 1:,} to {training.steps:,}, {tokens_per_step:,} tokens each ({total:,} in total)"
    )


class Reporter:
    """Reports steps as log lines, metrics and a progress bar (only if stderr is a terminal).

    A line's loss and perplexity are means over the steps since the previous line of this launch; its other values are
    the step's own. A skipped step has its own line with its own loss and is excluded from all means: it changed no
    weight, and its loss may be arbitrarily large. Only skipped steps have losses that are not finite.

    Args:
        config: the run's config.
        log: metrics log of process 0; None in the other processes, which report nothing.
        clock: the launch's clock, for goodput.
        first: number of steps completed before this launch.
        epochs: returns the passes over each source after a step, keyed by metric name.

    Attributes:
        reported: steps reported in this launch, including skipped ones.
    """

    def __init__(
        self,
        config: RunConfig,
        log: MetricsLog | None,
        clock: Clock,
        first: int,
        epochs: Callable[[int], dict[str, float]],
    ):
        self.config, self.log, self.clock, self.epochs = config, log, clock, epochs
        self.tokens_per_step = config.training.batch_size * config.data.sequence_length
        self.peak = peak_flops()
        # no progress lines, since steps are logged on lines of their own
        self.progress = Progress(
            "training", config.training.steps, "step", initial=first, shown=is_first(), lines=False
        )
        self.reported = 0
        self.losses: list[tuple[float, float]] = []  # loss with and without z-loss of each step since the last line
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last step, such as validation and saving, from tokens/s."""
        self.began, self.steps = time.perf_counter(), 0

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Report a completed step, given its metrics as plain numbers."""
        training = self.config.training
        self.progress.update()
        self.steps += 1
        self.reported += 1
        values = {name: float(value) for name, value in metrics.items()}
        loss, cross_entropy = values["loss"], values.pop("cross_entropy")
        if metrics["bad_steps"]:
            log_once(
                f"step {step:>6}  skipped: loss {loss:.4g}, gradient norm {values['grad_norm']:.4g} "
                f"({metrics['bad_steps']} in a row, {metrics['skipped']} in this run)"
            )
        else:
            self.losses.append((loss, cross_entropy))
            if step % training.log_every and step not in (1, training.steps):
                return
            loss, cross_entropy = (math.fsum(losses) / len(losses) for losses in zip(*self.losses))
            self.losses = []
        values |= {"loss": loss, "perplexity": perplexity(cross_entropy)}
        values |= self.epochs(step) | memory() | {"goodput": self.clock.goodput}
        line = f"step {step:>6}  loss {loss:.4f}  lr {values['learning_rate']:.2e}"
        line += f"  grad norm {values['grad_norm']:.2f}"
        values["tokens_per_second"] = rate = self.steps * self.tokens_per_step / (time.perf_counter() - self.began)
        line += f"  {rate:,.0f} tokens/s"
        if self.peak:
            values["mfu"] = rate * self.config.flops_per_token / self.peak
            line += f"  MFU {values['mfu']:.1%}"
        self.restart_clock()
        self.progress.note(
            f"loss {loss:.3f}, {rate:,.0f} tokens/s" + (f", MFU {values['mfu']:.1%}" if self.peak else "")
        )
        self._write(step, values)
        if not metrics["bad_steps"]:
            log_once(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Report the values of a validation after a step; see `make_validation`."""
        self._write(step, values)
        for name, loss in values.items():
            metric, slash, source = name.partition("/")
            if metric != "validation_loss":
                continue
            line = f"step {step:>6}  {source}{' ' * bool(source)}validation loss {loss:.4f}"
            derived = [f"{metric}{slash}{source}" for metric in ("validation_perplexity", "bits_per_byte")]
            if derived[0] in values:
                line += f"  perplexity {values[derived[0]]:.2f}  bits per byte {values[derived[1]]:.3f}"
            else:
                line += "  (weighted mean; selects the best checkpoint)"
            log_once(line)

    def samples(self, step: int, samples: dict[str, str]) -> None:
        """Report the completions sampled after a step; see `make_sampling`."""
        for prompt, completion in samples.items():
            log_once(f"step {step:>6}  sample: {prompt!r} -> {completion!r}")
        if self.log:
            self.log.write_samples(step, samples)

    def close(self) -> None:
        self.progress.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.log:
            self.log.write(step, values)


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices of the run together; None if unknown (CPUs)."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.peak_flops * jax.device_count() if chip else None


def memory() -> dict[str, float]:
    """The largest peak memory of this process's devices; empty if they do not report it (CPUs)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return {"peak_memory_gib": max(known) / GIB} if known else {}
