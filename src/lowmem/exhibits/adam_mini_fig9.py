"""Scaling laws of Llama (Figure 9 in our count; the paper's number is unknown): loss by operations, final loss by size.

Operations are 6 N D (Kaplan et al., arXiv 2001.08361); the paper's axis ends at 0.58 to 0.79 of that, by a formula that is
not given.
"""

import math

from lowmem.analysis.stats import estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import over
from lowmem.reporting.numbers.pairs import Pair, own_rate, pairs
from lowmem.reporting.panels.losses import decades, faint, letter_tables, tokens_label
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import estimated, missing, text

EXHIBIT = {
    "id": "adam_mini_fig9",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 90,
    "kind": "figure",
    "title": "Loss of Llama by operations and by size",
    "experiments": ["llama_scaling"],
    "published": "adam_mini.figure9",
}

NAMES = {"adamw": "AdamW", "adam_mini": "Adam-mini"}
ENOUGH = 3  # sizes: through two any line passes
PUBLISHED_SIZES = {"39M": 38738304, "67M": 66857472, "102M": 101924480, "162M": 162423552, "271M": 271090688}
PUBLISHED_SIZES["1B"] = 1055991808


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by size, then the fits. Values: slope.adamw, slope.adam_mini, slope.difference, and
    own_rate.slope.difference where each optimizer has its own best rate."""
    sizes = pairs(runs)
    fitted = " with the straight-line fits, bands over the fits of single seeds"
    if len(sizes) < ENOUGH:
        fitted = f", small dots the seeds; {len(sizes)} sizes show no law, so that no line is fitted"
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Left: validation loss against training operations (6 x parameters x tokens), mean over seeds. Middle: loss at "
        f"the end against parameters{fitted}. Right: the published "
        "end points (open diamonds) and the lines through them. All axes are logarithmic.",
        columns=["model", "parameters", "AdamW loss", "Adam-mini loss", "gap"],
        rows=[],
        deviations=["Operations are 6 N D; the paper's formula is not given."],
    )
    if tier != "paper":
        shown.deviations.append(
            "Sizes and data are those of this tier; tokens per parameter follow the paper's protocol."
        )
    for size in sizes:
        ends = [
            text(estimated(size.mean(o, size.tokens[-1]))) if size.complete else size.gap()["reason"] for o in NAMES
        ]
        shown.rows.append([size.name, f"{size.parameters:,}", *ends, text(size.gap(), True)])
    fits = summarise(shown, sizes)
    shown.values["own_rate.slope.difference"] = own_rate(runs, lambda own: slopes(own)["slope.difference"])
    paper = publish(shown, published)
    draw(shown, sizes, fits, paper)
    return shown


def fit(parameters: list[int], losses: list[float]) -> tuple[float, float]:
    """(slope, intercept) of log loss on log parameters by least squares."""
    x, y = [math.log(n) for n in parameters], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)
    return slope, mean_y - slope * mean_x


def fits_of(sizes: list[Pair]) -> dict[str, dict[int, tuple]]:
    """{optimizer: {seed: (slope, intercept)}} of complete sizes."""
    seeds = sorted(set.intersection(*(set(size.seeds) for size in sizes)))
    counts = [size.parameters for size in sizes]
    return {o: {s: fit(counts, [size.curves[o][s][size.tokens[-1]] for size in sizes]) for s in seeds} for o in NAMES}


def slopes(sizes: list[Pair]) -> dict[str, dict]:
    """{value: entry} of slope.adamw, slope.adam_mini and slope.difference; fits need every size."""
    gone = [size.gap() for size in sizes if not size.complete]
    if gone or len(sizes) < ENOUGH:
        few = f"not run: {len(sizes)} of the {ENOUGH} sizes that a law needs"
        reason = "; ".join(dict.fromkeys(entry["reason"] for entry in gone)) or few
        return dict.fromkeys(("slope.adamw", "slope.adam_mini", "slope.difference"), missing(reason))
    fits = fits_of(sizes)
    found = {f"slope.{o}": estimated(estimate([one[0] for one in by.values()]), "in slope") for o, by in fits.items()}
    change = {s: fits["adam_mini"][s][0] - fits["adamw"][s][0] for s in fits["adamw"]}
    return {**found, "slope.difference": over(change, "in slope")}


def summarise(shown: ExhibitResult, sizes: list[Pair]) -> dict[str, dict[int, tuple]]:
    """Values and rows of the fits. Returns {optimizer: {seed: (slope, intercept)}}, empty where a size is missing."""
    entries = slopes(sizes)
    shown.values |= entries
    if entries["slope.difference"]["value"] is None:
        return {}
    for optimizer, name in NAMES.items():
        shown.rows.append([f"slope of {name}", "", text(entries[f"slope.{optimizer}"], True), "", ""])
    shown.rows.append(["difference of slopes", "", "", "", text(entries["slope.difference"], True)])
    return fits_of(sizes)


def publish(shown: ExhibitResult, published: dict) -> dict[str, list[tuple[int, float]]]:
    """{optimizer: [(parameters, loss)]} of the paper."""
    found: dict[str, list] = {o: [] for o in NAMES}
    for size, count in PUBLISHED_SIZES.items():
        for optimizer, name in NAMES.items():
            cell = printed(published, f"end_loss_{name}", size=size)
            shown.published += published_entry(f"{size}, {name}, loss at the end", cell)
            if cell:
                found[optimizer].append((count, cell["value"]))
    return found


def draw(shown: ExhibitResult, sizes: list[Pair], fits: dict, paper: dict) -> None:
    """Loss by operations, final loss by size, and the paper's fits."""
    drawn, panels = plots.figure([["flops", "size", "paper"]], height=3.7, width_ratios=[1.2, 1, 1])
    complete = [size for size in sizes if size.complete]
    if not complete:
        for name in ("flops", "size"):
            plots.empty(panels[name], "not run: no record")
    else:
        draw_operations(panels["flops"], complete)
        draw_sizes(panels["size"], complete, fits)
    draw_paper(panels["paper"], paper)
    shown.figure = drawn


def draw_operations(axes, sizes: list[Pair]) -> None:
    heights, labels = [], []
    for size in sizes:
        ends, labels = [], []  # the methods' names stand at the largest size
        for optimizer in NAMES:
            curve = [size.mean(optimizer, tokens).value for tokens in size.tokens]
            plots.line(
                axes, [6.0 * size.parameters * tokens for tokens in size.tokens], curve, optimizer, linewidth=1.3
            )
            heights += curve[len(curve) // 6 :]
            ends.append(curve[-1])
            at = 6.0 * size.parameters * size.tokens[-1]
            labels.append((at, curve[-1], NAMES[optimizer], plots.look(optimizer)["color"]))
        place = (6.0 * size.parameters * size.tokens[-1], min(ends))  # below the end of its curve no other one passes
        style = {"xytext": (-5, -9), "textcoords": "offset points", "ha": "right", "fontsize": 8}
        axes.annotate(scale.short(size.parameters), place, **style)
    axes.set_xscale("log")
    decades(axes, heights)
    axes.set_ylim(min(heights) * 0.97, max(heights))
    axes.set(xlabel="operations (6 N D)", ylabel=scale.loss(sizes[0].runs["adamw"]))
    axes.set_title("Loss by operations")
    starts = [6.0 * size.parameters * size.tokens[len(size.tokens) // 6] for size in sizes]
    axes.set_xlim(min(starts) / 1.5)
    letter_tables(axes, sizes[0].runs["adamw"], max(label[1] for label in labels))
    plots.end_labels(axes, labels)


def draw_sizes(axes, sizes: list[Pair], fits: dict) -> None:
    counts = [size.parameters for size in sizes]
    heights, labels = [], []
    for optimizer in NAMES:
        look = plots.look(optimizer)
        means = [size.mean(optimizer, size.tokens[-1]).value for size in sizes]
        heights += means
        axes.plot(counts, means, linestyle="none", marker=plots.MARKERS[optimizer], color=look["color"])
        lines = [[math.exp(a * math.log(n) + b) for n in counts] for a, b in fits.get(optimizer, {}).values()]
        if len(sizes) < ENOUGH:
            heights += draw_seeds(axes, sizes, optimizer)
        elif lines:
            middle = [sum(column) / len(column) for column in zip(*lines)]
            axes.fill_between(counts, *(list(map(f, zip(*lines))) for f in (min, max)), color=look["color"], alpha=0.15)
            axes.plot(counts, middle, **look)
            for line in lines:
                axes.plot(counts, line, **faint(look["color"]))
        labels.append((counts[-1], means[-1], NAMES[optimizer], look["color"]))
    finish(axes, counts, heights, "Ours: final loss by size")
    plots.end_labels(axes, labels)


def draw_seeds(axes, sizes: list[Pair], optimizer: str) -> list[float]:
    """Final losses of single seeds as small dots; returns them."""
    ends = [(size.parameters, size.curves[optimizer][s][size.tokens[-1]]) for size in sizes for s in size.seeds]
    look = {**faint(plots.look(optimizer)["color"]), "linestyle": "none", "marker": "."}
    axes.plot(*zip(*ends, strict=True), **look, label=f"_{NAMES[optimizer]}, seeds")
    return [loss for _, loss in ends]


def draw_paper(axes, paper: dict) -> None:
    labels, heights = [], []
    for optimizer, found in paper.items():
        if len(found) < 2:
            plots.empty(axes, "no published value")
            return
        look, (counts, losses) = plots.look(optimizer), zip(*found, strict=True)
        plots.published_mark(axes, counts, losses, markeredgecolor=look["color"])
        slope, intercept = fit(counts, losses)
        axes.plot(counts, [math.exp(slope * math.log(n) + intercept) for n in counts], **{**look, "linewidth": 1.2})
        labels.append((counts[-1] * 1.25, losses[-1], NAMES[optimizer], look["color"]))  # beside the last diamond
        heights += losses
    finish(axes, counts, heights, "Published, Table 4 (per token)")
    plots.end_labels(axes, labels)


def finish(axes, counts, heights: list[float], title: str) -> None:
    axes.set_xscale("log")
    decades(axes, heights)
    axes.set_xlim(min(counts) / 1.2, max(counts) * (max(counts) / min(counts)) ** 0.45)
    places = counts if max(counts) < 10 * min(counts) else [counts[0], counts[-1]]
    axes.set_xticks(places, [tokens_label(float(f"{n:.2g}")) for n in places], fontsize=7)
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_title(title)
