"""Figure 1 of Adam-mini, its panels of memory and throughput. The loss panels are adam_mini_fig1."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, rate
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import value_or_reason

EXHIBIT = {
    "id": "adam_mini_fig1_cost",
    "paper": "adam_mini",
    "label": "Figure 1, memory and throughput",
    "order": 12,
    "kind": "figure",
    "topic": "cost",
    "title": "Llama2-7B: optimizer state and throughput",
    "experiments": ["adam_mini_state_memory", "simulated"],
    "published": "adam_mini.figure1",
}

OPTIMIZERS = ("adamw", "adam_mini")
LENGTHS = (512, 1024, 2048, 4096)


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Bars of state memory, and of throughput at the largest batch over sequence lengths, with the printed values."""
    shown = ExhibitResult(
        caption="Left: both moments of Llama2-7B in fp32, counted. Right: tokens per second on 2 x A800-80GB at each "
        f"optimizer's largest batch, whose size stands on the bar. {SIMULATED}",
        columns=["panel", "optimizer", "tokens per sequence", "batch per GPU", "value", "unit"],
        rows=[],
        deviations=["The paper does not state the sequence length; four are shown beside its one pair."],
    )
    drawn, panels = plots.figure([["memory", "throughput"]], height=3.4, width_ratios=[1, 2.2])
    memory_panel(panels["memory"], runs, published, shown)
    throughput_panel(panels["throughput"], runs, published, shown)
    shown.figure = drawn
    return shown


def memory_panel(axes, runs: Runs, published: dict, shown: ExhibitResult) -> None:
    """Counted bytes of both moments, with the printed value as a line across the bar."""
    for i, optimizer in enumerate(OPTIMIZERS):
        run = runs.one(model="llama2_7b", optimizer=optimizer)
        state, theirs = run.final("state_bytes"), printed(published, "memory_GB", optimizer=display.name(optimizer))
        shown.published += published_entry(f"{display.name(optimizer)}, optimizer state", theirs)
        value = "" if state is None else f"{state / 1e9:.2f}"
        shown.rows.append(["memory", display.name(optimizer), "", "", value or run.reason, "GB"])
        shown.values[f"memory.{optimizer}"] = value_or_reason(state and state / 1e9, "GB", run.reason)
        if state is None:
            axes.text(i, 1, "not run", ha="center", rotation=90, va="bottom")
            continue
        axes.bar(i, state / 1e9, 0.6, color=plots.COLOURS[optimizer])
        axes.text(i, state / 1e9 + 1, value, ha="center")
        if theirs is not None:
            axes.hlines(theirs["value"], i - 0.38, i + 0.38, color=plots.INK, linestyle=":")
    axes.set_xticks(range(len(OPTIMIZERS)), [display.name(optimizer) for optimizer in OPTIMIZERS])
    axes.set_ylabel("optimizer state (GB)")
    axes.set_title("Memory (dotted: printed)")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 62)


def throughput_panel(axes, runs: Runs, published: dict, shown: ExhibitResult) -> None:
    """Simulated tokens per second by sequence length, and the printed pair."""
    for i, optimizer in enumerate(OPTIMIZERS):
        for j, length in enumerate(LENGTHS):
            run = runs.one(cell=f"t2.{optimizer}.{length}")
            speed, reason = rate(run)
            cells = ["throughput", display.name(optimizer), length, run.final("batch") or ""]
            shown.rows.append([*cells, reason or f"{speed:.0f}", "token/s"])
            shown.values[f"throughput.{optimizer}.{length}"] = value_or_reason(speed, "token/s", reason)
            at = j + (i - 0.5) * 0.4
            if reason:
                axes.text(at, 100, reason.split(":")[0], ha="center", va="bottom", rotation=90)
                continue
            axes.bar(at, speed, 0.38, color=plots.COLOURS[optimizer])
            axes.text(at, speed + 120, f"{run.final('batch')}", ha="center", fontsize=8)
        theirs = printed(published, "throughput", optimizer=display.name(optimizer))
        shown.published += published_entry(f"{display.name(optimizer)}, throughput", theirs)
        if theirs is not None:
            at = len(LENGTHS) + (i - 0.5) * 0.4
            axes.bar(at, theirs["value"], 0.38, facecolor="none", edgecolor=plots.COLOURS[optimizer], hatch="///")
            axes.text(at, theirs["value"] + 120, "1" if optimizer == "adamw" else "4", ha="center", fontsize=8)
    labels = [*(f"{length}" for length in LENGTHS), "printed,\nlength unknown"]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("tokens per sequence; number on the bar: sequences per GPU")
    axes.set_ylabel("tokens per second")
    axes.set_title("Throughput at the largest batch (simulated)")
    axes.grid(axis="x", visible=False)
    for i, optimizer in enumerate(OPTIMIZERS):
        axes.text(0.99, 0.98 - 0.08 * i, display.name(optimizer), color=plots.COLOURS[optimizer], ha="right", va="top",
                  transform=axes.transAxes, fontweight="bold")  # fmt: skip
    axes.margins(y=0.22)
