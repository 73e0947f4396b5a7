"""LOMO's clipping: none, by value, by the global norm (two passes), by each tensor's norm (one), over learning rates."""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, log_loss, lost
from lowmem.reporting.numbers.rate_grids import RateGrid, tuned
from lowmem.reporting.panels.losses import limits, of_run
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import Value, exact, missing

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


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: value_minus_norm (per cent of the final loss at the largest rate below 1e-3), usable.<clip> (rates at which
    all seeds learned something and none diverged), usable.norm_minus_none, and <clip>_minus_norm.best for none and
    grouped (each at its best rate)."""
    methods = tuned(runs, "clip")
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Final validation loss by learning rate for LOMO with four kinds of clipping. Left: marks are seeds, dashes "
        "their mean; a cross: a seed diverged. Right: minus the loss with the global norm at the same rate, paired by seed.",
        columns=["clipping", "rate", "final loss (nat)", "diverged seeds"],
        rows=[],
        deviations=[
            "The paper says this in prose, without model or numbers; model, text, rates and thresholds are ours."
        ],
    )
    for what in ("value_clip_ok_for_lr_below", "grouped_norm_clip"):
        shown.published += published_entry(what.replace("_", " "), printed(published, what))
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


def usable(method: RateGrid) -> Value:
    """Number of rates at which every seed finished below its untrained loss."""
    runs = [run for group in method.rates.values() for run in group]
    waiting = next((run for run in runs if run.status != "done" and not lost(run)), None)
    if waiting:
        return missing(waiting.reason)
    fine = [rate for rate, group in method.rates.items() if all(map(learned, group))]
    return exact(len(fine), f"of {len(method.rates)} rates")


def more(ours: dict, theirs: dict) -> Value:
    """Difference of two counts."""
    gone = next((entry for entry in (ours, theirs) if entry["value"] is None), None)
    return gone or exact(ours["value"] - theirs["value"], "rates")


def learned(run) -> bool:
    """Whether a run ended below the loss that it started from."""
    start = next((row["val_loss"] for row in run.curve() if row.get("val_loss") is not None), None)
    return run.status == "done" and start is not None and run.final("val_loss") < start


def between(method: RateGrid, other: RateGrid) -> Value:
    return method.gone or other.gone or difference(method.best, other.best)


def draw(methods: dict[str, RateGrid]):
    """Left: the loss of every seed at every rate, methods side by side. Right: minus that of the global norm, paired."""
    drawn, panels = plots.figure([["loss", "gap"]], height=3.6, width_ratios=[1.3, 1])
    axes, right = panels["loss"], panels["gap"]
    heights = [score for method in methods.values() for score in method.scores.values()]
    if not heights:
        plots.empty(axes, "not run: no record")
        plots.empty(right, "")
        return drawn
    top = limits(axes, heights)
    rates = sorted({rate for method in methods.values() for rate in method.rates})
    for k, (name, method) in enumerate(methods.items()):
        for place, rate in enumerate(rates):
            group, at = method.rates.get(rate, []), place + 0.18 * (k - 1.5)
            for run in group:
                found = None if run.status != "done" else run.final("val_loss")
                if lost(run):
                    axes.plot(
                        at,
                        top,
                        marker="x",
                        color=COLOURS[name],
                        markersize=7,
                        clip_on=False,
                        **of_run(NAMES[name], run),
                    )
                elif found is not None:
                    seed = {"marker": "o", "markersize": 4, "alpha": 0.45, "color": COLOURS[name]}
                    axes.plot(at, min(found, top), **seed, **of_run(NAMES[name], run))
            if rate in method.scores:
                mean = min(method.scores[rate], top)
                axes.hlines(mean, at - 0.08, at + 0.08, color=COLOURS[name], linewidth=2)
            if name != "norm":
                gap(right, at, group, methods["norm"].rates.get(rate, []), name)
        axes.plot([], [], "o", color=COLOURS[name], label=NAMES[name])
    axes.legend(loc="lower left", fontsize=8)
    every = [run for method in methods.values() for group in method.rates.values() for run in group]
    axes.set(ylabel=scale.loss(every, "final validation loss"))
    axes.set_title("Loss; marks are seeds, a cross diverged")
    right.axhline(0, color=plots.INK, linewidth=0.8)
    right.set(ylabel="loss minus that of the global norm (nat)")
    right.set_title("At the same rate, 95 %")
    for panel in (axes, right):
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_xlim(-0.5, len(rates) - 0.5)
        panel.set(xlabel="learning rate")
    return drawn


def gap(axes, at: float, ours: list, norm: list, name: str) -> None:
    """The difference to clipping by the global norm at one rate with its interval; nothing where a seed diverged."""
    found = difference(ours, norm)
    if found["value"] is None:
        return
    ends = [found[key] if found.get(key) is not None else found["value"] for key in ("low", "high")]
    axes.vlines(at, *ends, color=COLOURS[name], linewidth=1.4)
    axes.plot(at, found["value"], "D", color=COLOURS[name], markersize=5, label=f"_{NAMES[name]}")
