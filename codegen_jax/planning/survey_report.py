"""Print and plot a survey of runs over slices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegen_jax.planning.survey import Entry, remarks


def table(entries: Sequence[Entry], price: float | None = None) -> str:
    """The entries as aligned text, with the cost of each run at a price per chip-hour."""
    header = ["run", "slice", "chips", "data x fsdp", "remat", "gradient_accumulation_steps"]
    header += ["step", "MFU", "days", "chip-hours"]
    rows = [header + ([] if price is None else ["cost"]) + [""]]
    for entry in entries:
        plan, hours = entry.plan, entry.chip_hours
        rows.append(
            [
                entry.run,
                plan.topology,
                str(entry.chips),
                f"{plan.mesh['data']} x {plan.mesh['fsdp']}",
                plan.remat,
                str(plan.gradient_accumulation_steps),
                f"{plan.step_seconds:.3f} s",
                f"{plan.mfu:.1%}",
                f"{entry.days:,.1f}",
                f"{hours:,.0f}",
                *([] if price is None else [f"{price * hours:,.0f}"]),
                ", ".join(remarks(entry, entries)),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def to_dicts(entries: Sequence[Entry], price: float | None = None) -> list[dict[str, Any]]:
    """The entries as plain values for JSON, without the lists of parameters and operations."""
    left_out = ("parameters", "operations")
    return [
        {"config": entry.run, "chips": entry.chips, "remarks": remarks(entry, entries)}
        | {key: value for key, value in entry.plan.to_dict(price).items() if key not in left_out}
        for entry in entries
    ]


def plot(entries: Sequence[Entry], path: str | Path) -> None:
    """Plot the days of each run over the number of chips, a line per kind of TPU, in a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    runs = list(dict.fromkeys(entry.run for entry in entries))
    kinds = list(dict.fromkeys(entry.kind for entry in entries))
    figure = plt.figure(figsize=(3.2 * len(runs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)
    for panel, run in zip(panels[0], runs):
        for number, kind in enumerate(kinds):
            chosen = [entry for entry in entries if (entry.run, entry.kind) == (run, kind)]
            days = [entry.days for entry in chosen]
            panel.plot([entry.chips for entry in chosen], days, marker="o", label=kind, color=f"C{number}")
            least = [at for at, entry in enumerate(chosen) if "least chip-hours" in remarks(entry, entries)]
            panel.plot([chosen[at].chips for at in least], [days[at] for at in least], "*", ms=15, color=f"C{number}")
        panel.set_xscale("log", base=4)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title(run, fontsize=10, loc="left")
        panel.set_xlabel("chips (star: least chip-hours)", fontsize=8)
    panels[0][0].set_ylabel("days (estimates)")
    panels[0][-1].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
