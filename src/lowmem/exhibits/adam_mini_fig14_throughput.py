"""Adam-mini against Adafactor: speed measured at equal batch here, and simulated for Llama2-7B. Sweeps: adam_mini_fig14."""

from lowmem import plots
from lowmem.cells import SIMULATED, use
from lowmem.exhibit import Runs, Shown, mark, printed, unfinished

EXHIBIT = {
    "id": "adam_mini_fig14_throughput",
    "paper": "adam_mini",
    "label": "Figure (number unknown): Adafactor throughput",
    "order": 141,
    "kind": "figure",
    "title": "Throughput of Adam-mini and Adafactor",
    "experiments": ["equal_batch", "simulated"],
    "published": "adam_mini.figure_adafactor_throughput",
}

OPTIMIZERS = ("adafactor", "adamw", "adam_mini")


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Two panels: measured on this machine, simulated on 2 x A800."""
    shown = Shown(
        caption="Left: whole training steps at equal batch, measured on this tier's machine. Right: Llama2-7B at the "
        f"largest batch on 2 x A800-80GB, 2048 tokens. {SIMULATED}",
        columns=["panel", "optimizer", "tokens/s", "x Adafactor"],
        rows=[],
        deviations=[
            "The paper's model, hardware and version of Adafactor are not known; ours is eager PyTorch, and Adam-mini a C "
            "loop on a CPU."
        ],
    )
    shown.published += mark("gain over Adafactor", printed(published, "gain_over_adafactor_pct"))
    measured = next(run for run in runs if run.experiment == "equal_batch")
    use(shown, measured)
    rates = {"measured": {}, "simulated": {}}
    reasons = {"measured": measured.reason, "simulated": None}
    for optimizer in OPTIMIZERS:
        found = (measured.final("equal") or {}).get(optimizer)
        rates["measured"][optimizer] = found and found["tokens_per_s"]
        run = runs.one(f"t2.{optimizer}.2048")
        use(shown, run)
        rates["simulated"][optimizer] = run.final("tokens_per_s")
    reasons["simulated"] = unfinished(runs.one(f"t2.{optimizer}.2048") for optimizer in OPTIMIZERS)
    drawn, panels = plots.figure([["measured", "simulated"]], height=3.0)
    for panel, found in rates.items():
        rows(shown, panel, found, reasons[panel])
        draw(panels[panel], found, panel, reasons[panel])
    shown.figure = drawn
    return shown


def rows(shown: Shown, panel: str, rates: dict, reason: str | None) -> None:
    """Numbers of one panel, and its gain in percent."""
    base = rates["adafactor"]
    for optimizer, rate in rates.items():
        if rate is None:
            shown.rows.append([panel, plots.name(optimizer), reason or "not run: no record", ""])
        else:
            shown.rows.append([panel, plots.name(optimizer), f"{rate:.0f}", f"{rate / base:.2f}" if base else ""])
    known = base and rates["adam_mini"]
    gain = {"value": 100 * (rates["adam_mini"] / base - 1), "unit": "%"} if known else None
    shown.values[f"{panel}.gain_percent"] = gain or {"value": None, "reason": reason or "not run: no record"}


def draw(axes, rates: dict, panel: str, reason: str | None) -> None:
    for i, (optimizer, rate) in enumerate(rates.items()):
        if rate is None:
            axes.text(0, i, " not run", va="center")
            continue
        axes.barh(i, rate, 0.6, color=plots.COLOURS[optimizer])
        axes.text(rate, i, f" {rate:,.0f}", va="center")
    axes.set_yticks(range(len(rates)), [plots.name(optimizer) for optimizer in rates])
    axes.set_ylim(-0.6, len(rates) - 0.4)
    axes.set_xlabel("tokens per second")
    axes.set_title({"measured": "Measured, equal batch", "simulated": "Simulated, Llama2-7B, largest batch"}[panel])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
