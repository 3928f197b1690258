"""One-page summary of a launch: OUTPUT/summary.md."""

from pathlib import Path

import jax
import yaml

import codegen_jax
from codegen_jax.config import RunConfig
from codegen_jax.training.clock import Clock
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.records import SUMMARY
from codegen_jax.training.reporter import peak_flops


def write_summary(config: RunConfig, folder: Path, clock: Clock, steps: int, outcome: str) -> None:
    """Write FOLDER/summary.md and its plot from FOLDER/metrics.jsonl and this launch's clock.

    Tokens/s and MFU are averages over the launch: its tokens divided by the time spent in steps.

    Args:
        steps: steps completed in this launch.
        outcome: how the launch ended, such as "finished".
    """
    lines = read_metrics(folder)
    logged = [line for line in lines if "skipped" in line]
    losses = [line["loss"] for line in logged if line["loss"] is not None and not line.get("bad_steps")]
    validated = [line for line in lines if line.get("validation_loss") is not None]
    tokens_per_step = config.training.batch_size * config.data.sequence_length
    rate, peak = steps * tokens_per_step / (clock.seconds * clock.goodput), peak_flops()
    facts = {"outcome": outcome}
    if logged:
        last = logged[-1]
        facts |= {
            "steps": f"{last['step']:,} of {config.training.steps:,}",
            "tokens": f"{last['step'] * tokens_per_step:,}",
            "steps skipped": f"{last['skipped']:.0f}",
            "tokens/s": f"{rate:,.0f}",
        }
        if peak:
            facts["MFU"] = f"{rate * config.flops_per_token / peak:.1%}"
        facts |= {"peak memory per device": f"{last['peak_memory_gib']:.2f} GiB"} if "peak_memory_gib" in last else {}
    if losses:
        facts["loss"] = f"{losses[-1]:.4f}"
    if validated:
        best = min(validated, key=lambda line: line["validation_loss"])
        facts["best validation loss"] = f"{best['validation_loss']:.4f} at step {best['step']:,}"
    devices = jax.devices()
    facts |= {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "versions": f"codegen_jax {codegen_jax.__version__}, jax {jax.__version__}",
    }
    from codegen_jax.training.picture import save_picture  # matplotlib delays the first step by 0.4 s

    save_picture(config, folder)
    spent = {"steps": clock.seconds * clock.goodput, **clock.spent}
    (folder / SUMMARY).write_text(
        f"# {config.name}\n\n"
        + "".join(f"- {name}: {value}\n" for name, value in facts.items())
        + "\n![loss](loss.png)\n\n## Wall time of this launch\n\n| | seconds | share |\n|---|---|---|\n"
        + "".join(f"| {cause} | {s:.1f} | {s / clock.seconds:.1%} |\n" for cause, s in spent.items())
        + f"\n## Config\n\n```yaml\n{yaml.safe_dump(config.to_dict(), sort_keys=False)}```\n"
    )
