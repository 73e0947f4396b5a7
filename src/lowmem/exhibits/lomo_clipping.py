"""LOMO's clipping: none, by value, by the global norm (two passes), by each tensor's norm (one), over learning rates."""

from lowmem import plots
from lowmem.drawing.curves import Tuned, difference, log_loss, lost, missing, tuned, used
from lowmem.drawing.loss_plots import above, limits
from lowmem.exhibit import Runs, Shown, mark, printed

EXHIBIT = {
    "id": "lomo_clipping",
    "paper": "lomo",
    "label": "Clipping",
    "order": 90,
    "kind": "figure",
    "title": "Clipping of gradients over learning rates",
    "experiments": ["lomo_clipping"],
    "published": "lomo.text_claims",
}

NAMES = {"none": "none", "value": "by value 0.01", "norm": "by global norm 1.0", "grouped": "by each tensor's norm 1.0"}
COLOURS = dict(zip(NAMES, (plots.INK, *plots.SERIES[:3]), strict=True))
BELOW = 1.0e-3  # where the paper finds value clipping sufficient


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: value_minus_norm (per cent of the final loss at the largest rate below 1e-3), usable.<clip> (rates at which
    all seeds learned something and none diverged), usable.norm_minus_none, and <clip>_minus_norm.best for none and
    grouped (each at its best rate)."""
    methods = tuned(runs)
    shown = Shown(
        caption="Final validation loss by learning rate for LOMO with four kinds of clipping, mean over seeds; a cross: a seed "
        "diverged. Right: how many seeds diverged at each rate.",
        columns=["clipping", "rate", "final loss (nat)", "diverged seeds"],
        rows=[],
        deviations=[
            "The paper says this in prose, without model or numbers; model, text, rates and thresholds are ours."
        ],
        runs_used=used(runs),
    )
    for what in ("value_clip_ok_for_lr_below", "grouped_norm_clip"):
        shown.published += mark(what.replace("_", " "), printed(published, what))
    for name, method in methods.items():
        for rate, group in method.rates.items():
            score = method.scores.get(rate)
            gone = sum(lost(run) for run in group)
            open_ = next((run.reason for run in group if run.status != "done" and not lost(run)), "")
            cell = f"{score:.3f}" if score is not None else open_ or "diverged"
            shown.rows.append([NAMES[name], f"{rate:g}", cell, f"{gone} of {len(group)}"])
        shown.values[f"usable.{name}"] = usable(method)
    shown.values["usable.norm_minus_none"] = more(shown.values["usable.norm"], shown.values["usable.none"])
    low = max((rate for rate in methods["norm"].rates if rate < BELOW), default=None)
    if low is not None:
        shown.values["value_minus_norm"] = difference(
            methods["value"].rates[low], methods["norm"].rates[low], log_loss, "%"
        )
    for name in ("none", "grouped"):
        shown.values[f"{name}_minus_norm.best"] = between(methods[name], methods["norm"])
    shown.figure = draw(methods)
    return shown


def usable(method: Tuned) -> dict:
    """Number of rates at which every seed finished below its untrained loss."""
    runs = [run for group in method.rates.values() for run in group]
    waiting = next((run for run in runs if run.status != "done" and not lost(run)), None)
    if waiting:
        return missing(waiting.reason)
    fine = [rate for rate, group in method.rates.items() if all(map(learned, group))]
    return {"value": len(fine), "unit": f"of {len(method.rates)} rates"}


def more(ours: dict, theirs: dict) -> dict:
    """Difference of two counts."""
    gone = next((entry for entry in (ours, theirs) if entry["value"] is None), None)
    return gone or {"value": ours["value"] - theirs["value"], "unit": "rates"}


def learned(run) -> bool:
    """Whether a run ended below the loss that it started from."""
    start = next((row["val_loss"] for row in run.curve() if row.get("val_loss") is not None), None)
    return run.status == "done" and start is not None and run.final("val_loss") < start


def between(method: Tuned, other: Tuned) -> dict:
    return method.gone or other.gone or difference(method.best, other.best)


def draw(methods: dict[str, Tuned]):
    drawn, panels = plots.figure([["loss", "lost"]], height=3.6, width_ratios=[1.6, 1])
    axes, below = panels["loss"], panels["lost"]
    heights = [score for method in methods.values() for score in method.scores.values()]
    if not heights:
        plots.empty(axes, "not run: no record")
        plots.empty(below, "")
        return drawn
    top, labels = limits(axes, heights), []
    rates = sorted({rate for method in methods.values() for rate in method.rates})
    for k, (name, method) in enumerate(methods.items()):
        scores = sorted(method.scores.items())
        if scores:
            axes.plot(*zip(*scores, strict=True), marker=".", color=COLOURS[name], label=f"_{NAMES[name]}")
            end = (rates[-1], top) if any(map(lost, method.rates.get(rates[-1], []))) else (rates[-1], scores[-1][1])
            labels.append(above((*end, NAMES[name], COLOURS[name]), top))
        counts = [sum(lost(run) for run in method.rates.get(rate, [])) for rate in rates]
        at = [place + 0.18 * (k - 1.5) for place in range(len(rates))]
        below.bar(at, counts, width=0.16, color=COLOURS[name], label=f"_{NAMES[name]}")
        for rate, count in zip(rates, counts, strict=True):
            if count:
                axes.plot(rate, top, marker="x", color=COLOURS[name], markersize=7, clip_on=False)
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set(ylabel="final validation loss (nat per token)", xlabel="learning rate")
    axes.set_title("Loss; a cross: diverged")
    plots.end_labels(axes, labels)
    below.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    below.set_xlim(-0.6, len(rates) - 0.4)
    seeds = max(len(group) for method in methods.values() for group in method.rates.values())
    below.set(ylabel="diverged runs", xlabel="learning rate", ylim=(0, seeds), yticks=range(seeds + 1))
    below.set_title(f"Diverged, of {seeds}")
    return drawn
