"""Figure 2 of LOMO: shares of the training memory of LLaMA-7B, from the same runs as Table 1."""

from lowmem.exhibits.lomo_table1 import components
from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.memory import SIMULATED, gib
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs, unfinished
from lowmem.reporting.values import value_or_reason

EXHIBIT = {
    "id": "lomo_fig2",
    "paper": "lomo",
    "label": "Figure 2",
    "order": 20,
    "kind": "figure",
    "topic": "cost",
    "title": "Shares of training memory",
    "experiments": ["lomo_state_memory", "simulated"],
    "published": "lomo.fig2",
}

OPTIMIZERS = ("adamw", "sgd", "lomo")
PARTS = {  # part: (in the paper's figure, shade)
    "weights": ("params", 1.0),
    "gradients": ("gradients", 0.7),
    "optimizer state": ("optimizer_states", 0.45),
    "activations": ("activations", 0.2),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """A bar of ours and a bar of the paper's for each optimizer, in percent of its own total."""
    shown = ExhibitResult(
        caption="Shares of the memory of LLaMA-7B, 8 sequences of 512 tokens with activation checkpointing: weights, "
        f"gradients and state counted, activations simulated. {SIMULATED}",
        columns=["optimizer", "part", "ours (%)", "published (%)"],
        rows=[],
        deviations=["The paper draws pies; bars make the shares comparable."],
    )
    bars, reason = {}, None
    for optimizer in OPTIMIZERS:
        counted, cell = runs.one(optimizer=optimizer), runs.one(cell=f"l1.{optimizer}.on")
        missing = unfinished([counted, cell])
        reason = reason or missing
        ours = None if missing else share(components(counted), gib(cell, "kept_activation_bytes"))
        theirs = {}
        for part, (key, _) in PARTS.items():
            value = printed(published, key, optimizer=display.name(optimizer))
            shown.published += published_entry(f"{display.name(optimizer)}, {part}", value)
            theirs[part] = None if value is None else value["value"]
            row = [display.name(optimizer), part, missing or f"{ours[part]:.1f}"]
            shown.rows.append([*row, "" if value is None else f"{value['value']:.1f}"])
            key = f"{optimizer}.{part.replace(' ', '_')}"
            shown.values[key] = value_or_reason(ours and ours[part], "%", missing)
        bars[optimizer] = (ours, theirs)
    shown.figure = draw(bars, reason)
    return shown


def share(counted: dict[str, float], activations: float) -> dict[str, float]:
    """Percent of the sum of all four parts."""
    sizes = dict(zip(PARTS, (counted["params"], counted["gradients"], counted["optim_states"], activations)))
    total = sum(sizes.values())
    return {part: 100 * size / total for part, size in sizes.items()}


def draw(bars: dict, reason: str | None):
    """Horizontal bars: ours above the paper's, parts by shade of the optimizer's colour."""
    drawn, panels = plots.figure([["shares"]], height=3.6)
    axes = panels["shares"]
    ticks, labels = [], []
    for i, (optimizer, (ours, theirs)) in enumerate(bars.items()):
        for offset, whose, parts in ((0.0, "ours", ours), (0.4, "paper", theirs)):
            at, left = i * 1.1 + offset, 0.0
            ticks.append(at)
            labels.append(f"{display.name(optimizer)}, {whose}")
            if parts is None or None in parts.values():
                axes.text(1, at, "not run" if whose == "ours" else "unknown", va="center")
                continue
            for part, (_, alpha) in PARTS.items():
                axes.barh(at, parts[part], 0.36, left, color=plots.COLOURS[optimizer], alpha=alpha)
                if parts[part] > 9:
                    text = f"{part} {parts[part]:.0f} %" if parts[part] > 20 else f"{parts[part]:.0f} %"
                    ink = "white" if alpha == 1.0 else "black"
                    axes.text(left + parts[part] / 2, at, text, ha="center", va="center", fontsize=7.5, color=ink)
                left += parts[part]
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of memory (%); from left to right: weights, gradients, optimizer state, activations")
    if reason:
        axes.set_title(f"not run: {reason.removeprefix('not run: ')[:80]}")
    return drawn
