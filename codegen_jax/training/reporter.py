"""What a person sees of a run: lines, a progress bar, and the numbers behind them for the log."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from codegen_jax.chips import GIB, chip_of
from codegen_jax.config import RunConfig
from codegen_jax.distributed import is_first, say
from codegen_jax.training.clock import Clock
from codegen_jax.training.metrics import MetricsLog


class Reporter:
    """Turns steps into lines, log entries and a progress bar (none where stderr is not a terminal).

    Args:
        log: where process 0 writes; None in the others, which report nothing.
        first: the step that the run goes on from.
        epochs: passes over each source after a step, by name.
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
        chip = chip_of(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops * jax.device_count() if chip else None
        hidden = None if is_first() else True
        self.bar = tqdm(total=config.training.steps, initial=first, unit="step", disable=hidden, dynamic_ncols=True)
        self.reported = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of tokens/s what has passed since the last step: validation, saving."""
        self.began, self.steps = time.perf_counter(), 0

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step that is done; its metrics as plain numbers."""
        training = self.config.training
        self.bar.update()
        self.steps += 1
        self.reported += 1
        if metrics["bad_steps"]:
            say(
                f"step {step:>6}  skipped: loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g} "
                f"({metrics['bad_steps']} in a row, {metrics['skipped']} of the run)"
            )
        elif step % training.log_every and step not in (1, training.steps):
            return
        values = {name: float(value) for name, value in metrics.items() if name != "bad_steps"}
        values["perplexity"] = math.exp(min(values.pop("cross_entropy"), 700.0))
        values |= self.epochs(step) | memory() | {"goodput": self.clock.goodput}
        line = f"step {step:>6}  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
        line += f"  grad norm {values['grad_norm']:.2f}"
        values["tokens_per_second"] = rate = self.steps * self.tokens_per_step / (time.perf_counter() - self.began)
        line += f"  {rate:,.0f} tokens/s"
        if self.peak:
            values["mfu"] = rate * self.config.model.flops_per_token(self.config.data.sequence_length) / self.peak
            line += f"  MFU {values['mfu']:.1%}"
        self.restart_clock()
        self.bar.set_postfix(
            {"loss": f"{values['loss']:.3f}", "tokens/s": f"{rate:,.0f}"}
            | ({"MFU": f"{values['mfu']:.1%}"} if self.peak else {})
        )
        self._write(step, values)
        if not metrics["bad_steps"]:
            say(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """What `make_validation`'s function gave after a step."""
        self._write(step, values)
        for name in values:
            metric, slash, source = name.partition("/")
            if metric == "validation_loss" and f"validation_perplexity{slash}{source}" in values:
                say(
                    f"step {step:>6}  {source}{' ' * bool(source)}validation loss {values[name]:.4f}  "
                    f"perplexity {values[f'validation_perplexity{slash}{source}']:.2f}  "
                    f"bits per byte {values[f'bits_per_byte{slash}{source}']:.3f}"
                )

    def samples(self, step: int, samples: dict[str, str]) -> None:
        """What `make_sampling`'s function gave after a step."""
        for prompt, completion in samples.items():
            say(f"step {step:>6}  sample: {prompt!r} -> {completion!r}")
        if self.log:
            self.log.write_samples(step, samples)

    def close(self) -> None:
        self.bar.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.log:
            self.log.write(step, values)


def memory() -> dict[str, float]:
    """The most memory that was ever in use on a device of this process; nothing where devices do not say (CPUs)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return {"peak_memory_gib": max(known) / GIB} if known else {}
