"""What a person sees of a run: lines, a progress bar, and the numbers behind them for the log."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from codegen_jax.chips import GIB, chip_of
from codegen_jax.config import RunConfig
from codegen_jax.data.sources import Source
from codegen_jax.distributed import is_first, say
from codegen_jax.progress import Progress
from codegen_jax.training.clock import Clock
from codegen_jax.training.loss import perplexity
from codegen_jax.training.metrics import MetricsLog
from codegen_jax.training.resolve import ResolvedRun


def announce(run: ResolvedRun, sources: list[Source], first: int) -> None:
    """Say what is about to be trained, on what, and how far it goes from step `first` on."""
    devices, training = run.mesh.devices.flat, run.training
    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    say(
        f"{run.model.n_params:,} parameters on {devices[0].device_kind} x {len(devices)}, {jax.process_count()} "
        f"process(es); mesh {axes}"
    )
    for source in sources:
        files, windows = source.files, source.windows
        say(
            f"{files.folder}: {files.manifest.tokens:,} tokens in {len(files.arrays):,} file(s), {len(windows):,} "
            f"windows of {run.sequence_length:,}; {windows.left:,} left over"
        )
    tokens_per_step = training.batch_size * run.sequence_length
    to_come = training.steps - first
    say(
        f"{to_come:,} of {training.steps:,} steps to come, of {tokens_per_step:,} tokens each: "
        f"{to_come * tokens_per_step:,} tokens"
    )


class Reporter:
    """Turns steps into lines, log entries and a progress bar (none where stderr is not a terminal).

    The loss and perplexity of a line are those of the mean over the steps since the line before (of this launch); its
    other numbers are the step's own. A skipped step has a line of its own, with its own loss, and no part in any mean:
    its loss changed no weight and may be of any size. A loss that is not finite is always that of a skipped step.

    Args:
        log: where process 0 writes; None in the others, which report nothing.
        first: the step that the run goes on from.
        epochs: passes over each source after a step, by name.

    Attributes:
        reported: steps of this launch so far, skipped ones included.
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
        # no lines in place of a bar, since each step logged has its own
        self.progress = Progress(
            "training", config.training.steps, "step", initial=first, shown=is_first(), lines=False
        )
        self.reported = 0
        self.losses: list[tuple[float, float]] = []  # with and without z-loss, of steps since the last line
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of tokens/s what has passed since the last step: validation, saving."""
        self.began, self.steps = time.perf_counter(), 0

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step that is done; its metrics as plain numbers."""
        training = self.config.training
        self.progress.update()
        self.steps += 1
        self.reported += 1
        values = {name: float(value) for name, value in metrics.items()}
        loss, cross_entropy = values["loss"], values.pop("cross_entropy")
        if metrics["bad_steps"]:
            say(
                f"step {step:>6}  skipped: loss {loss:.4g}, gradient norm {values['grad_norm']:.4g} "
                f"({metrics['bad_steps']} in a row, {metrics['skipped']} of the run)"
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
            values["mfu"] = rate * self.config.model.flops_per_token(self.config.data.sequence_length) / self.peak
            line += f"  MFU {values['mfu']:.1%}"
        self.restart_clock()
        self.progress.note(
            f"loss {loss:.3f}, {rate:,.0f} tokens/s" + (f", MFU {values['mfu']:.1%}" if self.peak else "")
        )
        self._write(step, values)
        if not metrics["bad_steps"]:
            say(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """What `make_validation`'s function gave after a step."""
        self._write(step, values)
        for name, loss in values.items():
            metric, slash, source = name.partition("/")
            if metric != "validation_loss":
                continue
            line = f"step {step:>6}  {source}{' ' * bool(source)}validation loss {loss:.4f}"
            of_text = [f"{metric}{slash}{source}" for metric in ("validation_perplexity", "bits_per_byte")]
            if of_text[0] in values:
                line += f"  perplexity {values[of_text[0]]:.2f}  bits per byte {values[of_text[1]]:.3f}"
            else:
                line += "  the mean by weight, which picks the best checkpoint"
            say(line)

    def samples(self, step: int, samples: dict[str, str]) -> None:
        """What `make_sampling`'s function gave after a step."""
        for prompt, completion in samples.items():
            say(f"step {step:>6}  sample: {prompt!r} -> {completion!r}")
        if self.log:
            self.log.write_samples(step, samples)

    def close(self) -> None:
        self.progress.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.log:
            self.log.write(step, values)


def peak_flops() -> float | None:
    """FLOP/s of all devices of the run together; None where they are not known (CPUs)."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.peak_flops * jax.device_count() if chip else None


def memory() -> dict[str, float]:
    """The most memory that was ever in use on a device of this process; nothing where devices do not say (CPUs)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return {"peak_memory_gib": max(known) / GIB} if known else {}
