"""Adam-mini against Adafactor: speed measured at equal batch here, and simulated for Llama2-7B. Sweeps: adam_mini_fig14."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, rate
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import value_or_reason

EXHIBIT = {
    "id": "adam_mini_fig14_throughput",
    "paper": "adam_mini",
    "label": "Figure (number unknown): Adafactor throughput",
    "order": 141,
    "kind": "figure",
    "topic": "cost",
    "times": ["measured.*"],
    "title": "Throughput of Adam-mini and Adafactor",
    "experiments": ["equal_batch", "simulated"],
    "published": "adam_mini.figure_adafactor_throughput",
}

OPTIMIZERS = ("adafactor", "adamw", "adam_mini")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Two panels: measured on this machine, simulated on 2 x A800."""
    shown = ExhibitResult(
        caption="Left: whole training steps at equal batch, measured on this tier's machine. Right: Llama2-7B at the "
        f"largest batch on 2 x A800-80GB, 2048 tokens. {SIMULATED}",
        columns=["panel", "optimizer", "tokens/s", "x Adafactor"],
        rows=[],
        deviations=[
            "The paper's model, hardware and version of Adafactor are not known; ours is eager PyTorch, and Adam-mini a C "
            "loop on a CPU."
        ],
    )
    shown.published += published_entry("gain over Adafactor", printed(published, "gain_over_adafactor_pct"))
    measured = next(run for run in runs if run.experiment == "equal_batch")
    speeds = {"measured": {}, "simulated": {}}  # panel: {optimizer: (tokens/s, why there is none)}
    for optimizer in OPTIMIZERS:
        found = (measured.final("equal") or {}).get(optimizer)
        absent = measured.reason or "not run: not among the optimizers"
        speeds["measured"][optimizer] = (found["tokens_per_s"], None) if found else (None, absent)
        run = runs.one(cell=f"t2.{optimizer}.2048")
        speeds["simulated"][optimizer] = rate(run)
    drawn, panels = plots.figure([["measured", "simulated"]], height=3.0)
    for panel, of_panel in speeds.items():
        rows(shown, panel, of_panel)
        draw(panels[panel], of_panel, panel)
    shown.figure = drawn
    return shown


def rows(shown: ExhibitResult, panel: str, speeds: dict) -> None:
    """Numbers of one panel, and its gain in percent."""
    (base, no_base), (ours, no_ours) = speeds["adafactor"], speeds["adam_mini"]
    for optimizer, (speed, reason) in speeds.items():
        ratio = f"{speed / base:.2f}" if speed and base else ""
        shown.rows.append([panel, display.name(optimizer), reason or f"{speed:.0f}", ratio])
    reason = no_base or no_ours
    gain = None if reason else 100 * (ours / base - 1)
    shown.values[f"{panel}.gain_percent"] = value_or_reason(gain, "%", reason)


def draw(axes, speeds: dict, panel: str) -> None:
    """A bar for each optimizer, or in its place why there is none, in two words."""
    for i, (optimizer, (speed, reason)) in enumerate(speeds.items()):
        if not reason:
            axes.barh(i, speed, 0.6, color=plots.COLOURS[optimizer])
        words = reason.partition(":")[0].partition(" (")[0] if reason else f"{speed:,.0f}"
        axes.annotate(words, (0 if reason else speed, i), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(speeds)), [display.name(optimizer) for optimizer in speeds])
    axes.set_ylim(-0.6, len(speeds) - 0.4)
    axes.set_xlabel("tokens per second")
    axes.set_title({"measured": "Measured, equal batch", "simulated": "Simulated, Llama2-7B, largest batch"}[panel])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
