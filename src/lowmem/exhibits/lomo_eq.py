"""Equations 1 to 6 of LOMO: what dropping the curvature term between two SGD steps and one joint step leaves out."""

from lowmem.analysis.stats import estimate, least, worst
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import absent, extreme, ratio
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import Value, estimated, missing, text

EXHIBIT = {
    "id": "lomo_eq",
    "paper": "lomo",
    "label": "Equations 1 to 6",
    "order": 80,
    "kind": "figure",
    "topic": "theory",
    "title": "Two steps in turn against one joint step",
    "experiments": ["sequential_steps"],
    "published": "lomo.eq1_6",
}

RATE = 3.0e-2  # the published rate of LOMO, and the largest of the experiment


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: slope.least and slope.most (of log residual by log rate), relative.trained (of the joint step, at the largest
    rate, widest trained model), width.<state> (relative residual of the widest model over that of the narrowest)."""
    groups = by_axis(runs, "width", "state")
    counts = [run.final("parameters") for run in runs if run.status == "done"]
    size = f"of {scale.between(counts)} parameters" if counts else "small enough for this tier"
    shown = ExhibitResult(
        caption=f"A Llama {size}: distance between two SGD steps in turn, on batches of 8 x 64 bytes, and one step along both "
        "gradients, mean over seeds. Left: against the rate, with the slope of a second-order term (dotted). Right: as a share "
        "of the joint step at LOMO's published rate, by width.",
        columns=["width", "weights", "parameters", "loss (nat)", "slope", "share of the step at 0.03"],
        rows=[],
        deviations=["The paper shows no measurement of this; models, text and widths are ours."],
    )
    shown.published = published_entry("order of the dropped term", printed(published, "order_in_alpha"))
    for (width, state), group in groups.items():
        done = next((run for run in group if run.status == "done"), None)
        known = [f"{done.final('parameters'):,}", f"{done.final('loss'):.2f}"] if done else ["", ""]
        shown.rows.append(
            [width, state, *known, text(over(group, "slope"), digits=3), text(over(group, "relative"), digits=4)]
        )
    slopes = [over(group, "slope") for group in groups.values()]
    shown.values = {"slope.least": extreme(slopes, least), "slope.most": extreme(slopes, worst)}
    for state in ("fresh", "trained"):
        widths = [group for (_, own), group in groups.items() if own == state]
        shown.values[f"relative.{state}"] = over(widths[-1], "relative", "of the joint step")
        shown.values[f"width.{state}"] = grown(widths[0], widths[-1])
    shown.figure = draw(groups)
    return shown


def over(group: list[Run], key: str, unit: str = "") -> Value:
    """Mean of a final number over seeds, as an entry."""
    gone = absent(group, group)
    return gone or estimated(estimate([run.final(key) for run in group]), unit)


def grown(narrow: list[Run], wide: list[Run]) -> Value:
    """Relative residual of the widest over that of the narrowest model at equal seed; below 1: wider is smoother."""
    if gone := absent(wide, narrow):
        return gone
    if len(narrow) != len(wide):
        return missing("not run: another number of seeds")
    ours, theirs = ({run.seed: run.final("relative") for run in group} for group in (wide, narrow))
    return ratio(ours, theirs)


def draw(groups: dict[tuple, list[Run]]):
    """What is left out, by rate and by width."""
    drawn, panels = plots.figure([["rate", "width"]], width=9.4, height=3.6, width_ratios=[1.3, 1])
    axes, labels = panels["rate"], []
    colours = {width: plots.SERIES[k] for k, width in enumerate(dict.fromkeys(width for width, _ in groups))}
    for (width, state), group in groups.items():
        curves = [[(row["alpha"], row["residual"]) for row in run.curve()] for run in group if run.status == "done"]
        if not curves:
            continue
        look = {"color": colours[width], "linestyle": "solid" if state == "trained" else (0, (2, 1.2))}
        x = [alpha for alpha, _ in curves[0]]
        y = [sum(curve[k][1] for curve in curves) / len(curves) for k in range(len(x))]
        axes.plot(x, y, **look)
        labels.append((x[-1], y[-1], f"{width} wide, {state}", colours[width]))
    if not labels:
        for axes in panels.values():
            plots.empty(axes, "not run: no record")
        return drawn
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="distance of the two results")
    low, high = axes.get_xlim()
    base = axes.get_ylim()[0] / 3  # below the curves
    axes.plot([low, high], [base, base * (high / low) ** 2], color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))
    axes.set_xlim(low, high)
    plots.end_labels(axes, labels)
    by_width(panels["width"], groups)
    return drawn


def by_width(axes, groups: dict[tuple, list[Run]]) -> None:
    labels = []
    for k, state in enumerate(("fresh", "trained")):
        found = {width: over(group, "relative") for (width, own), group in groups.items() if own == state}
        points = [(width, entry["value"]) for width, entry in found.items() if entry["value"] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=plots.SERIES[k + 2])
            labels.append((*points[-1], f"{state} weights", plots.SERIES[k + 2]))
    axes.set_xscale("log", base=2)
    widths = sorted({width for width, _ in groups})
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set(xlabel="width of the model", ylabel="share of the joint step")
    plots.end_labels(axes, labels)
