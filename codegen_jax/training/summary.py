"""The end of a launch, told in one page: OUTPUT/summary.md."""

from pathlib import Path

import jax
import yaml

import codegen_jax
from codegen_jax.config import RunConfig
from codegen_jax.training.clock import Clock
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.picture import save_picture


def write_summary(config: RunConfig, folder: Path, clock: Clock, outcome: str) -> None:
    """Write FOLDER/summary.md and the picture in it, from FOLDER/metrics.jsonl and this launch's clock.

    Args:
        outcome: how the launch ended, such as "finished".
    """
    lines = read_metrics(folder)
    losses = [line for line in lines if line.get("loss") is not None]
    validated = [line for line in lines if line.get("validation_loss") is not None]
    facts = {"outcome": outcome}
    if losses:
        last = losses[-1]
        facts |= {
            "steps": f"{last['step']:,} of {config.training.steps:,}",
            "tokens": f"{last['step'] * config.training.batch_size * config.data.sequence_length:,}",
            "loss": f"{last['loss']:.4f}",
            "tokens/s": f"{last['tokens_per_second']:,.0f}",
            "steps skipped": f"{last['skipped']:.0f}",
        }
        facts |= {"MFU": f"{last['mfu']:.1%}"} if "mfu" in last else {}
        facts |= {"memory of a device": f"{last['peak_memory_gib']:.2f} GiB"} if "peak_memory_gib" in last else {}
    if validated:
        best = min(validated, key=lambda line: line["validation_loss"])
        facts["best validation loss"] = f"{best['validation_loss']:.4f}, at step {best['step']:,}"
    devices = jax.devices()
    facts |= {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "versions": f"codegen_jax {codegen_jax.__version__}, jax {jax.__version__}",
    }
    save_picture(config, folder)
    spent = {"steps": clock.seconds * clock.goodput, **clock.spent}
    (folder / "summary.md").write_text(
        f"# {config.name}\n\n"
        + "".join(f"- {name}: {value}\n" for name, value in facts.items())
        + "\n![loss](loss.png)\n\n## Wall time of this launch\n\n| | seconds | share |\n|---|---|---|\n"
        + "".join(f"| {cause} | {s:.1f} | {s / clock.seconds:.1%} |\n" for cause, s in spent.items())
        + f"\n## Config\n\n```yaml\n{yaml.safe_dump(config.to_dict(), sort_keys=False)}```\n"
    )
