"""Panels that the language-model figures share: loss curves, paired gaps, losses by rate, losses side by side."""

import math

from lowmem.analysis import stats
from lowmem.reporting import display, plots
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import losses
from lowmem.reporting.numbers.pairs import Pair
from lowmem.reporting.numbers.rate_grids import RateGrid
from lowmem.reporting.runs import Run
from lowmem.reporting.values import is_result

TEXTS = {  # nat per symbol of tables counted on all of the training text (benchmarks/ngram_entropies.py)
    ("sotu", "byte"): {"bigram table": 2.516, "trigram table": 2.095},
    ("shakespeare", "byte"): {"bigram table": 2.556, "trigram table": 1.976},
    ("prose", "char"): {"bigram table": 2.549, "trigram table": 2.086},
}


def tokens_label(value: float, _=None) -> str:
    """1500000 -> 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def faint(colour: str) -> dict:
    """Line keywords of a single seed."""
    return {"color": colour, "linewidth": 0.8, "alpha": 0.4}


def of_run(name: str, run: Run) -> dict:
    """Label of a single run's line: shown on the page when a point of it is pointed at, in no legend."""
    return {"label": f"_{display.name(name)}: {run.id}"}


def of_mean(name: str, runs: list[Run]) -> dict:
    """Label of a mean line, likewise."""
    place = f"{runs[0].experiment}/{runs[0].variant}" if runs else ""
    return {"label": f"_{display.name(name)}, mean of {len(runs)} seed{'s' * (len(runs) > 1)}: {place}"}


def zero_and_margin(axes, margin: float) -> None:
    """No gap as a line, the margin in nat as a dotted one (the caption says so)."""
    axes.axhline(0, color=plots.INK, linewidth=0.8)
    axes.axhline(margin, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))


def limit_to_values(axes, values: list[float]) -> None:
    """The axis shows these values (the margin among them) and zero."""
    low, high = min([0, *values]), max([0, *values])
    axes.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))


def mean_of(curves: list[list[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """(x, mean y) at the x that all curves have."""
    found = [dict(curve) for curve in curves if curve]
    x = sorted(set.intersection(*map(set, found))) if found else []
    return x, [sum(curve[at] for curve in found) / len(found) for at in x]


def limits(axes, heights: list[float], cut: bool = True) -> float:
    """Fit the loss axis to these values but for far outliers above (unless cut is off); returns the upper end."""
    low, middle = min(heights), sorted(heights)[len(heights) // 2]
    high = min(max(heights), low + 5 * (middle - low) + 0.05) if cut else max(heights)
    axes.set_ylim(low - 0.06 * (high - low) - 1e-3, high + 0.06 * (high - low) + 1e-3)
    return high


def near(curves: list[list[float]]) -> list[list[float]]:
    """The curves that do not end far above the others: one that failed must not squeeze the rest into a strip."""
    ends = sorted(curve[-1] for curve in curves)
    far = ends[0] + 5 * (ends[len(ends) // 2] - ends[0]) + 0.05 if ends else 0.0
    return [curve for curve in curves if curve[-1] <= far]


def above(label: tuple, top: float) -> tuple:
    """A label whose line ends above the panel is put at its upper edge, with the value and an arrow."""
    x, y, text, colour = label
    return label if y <= top else (x, top, f"{text} {y:.2f} ↑", colour)


def loss_curves(axes, groups: dict[str, list[Run]], start: float = 0.0, curve=losses, band: bool = False) -> None:
    """One mean line for each name (a key of plots.look) over its seeds, thin lines for the seeds, labels at the ends.

    start: share of the run from which on the axis is fitted to the curves. band: the 95 % interval of the mean in place of
    thin lines, where seeds would hide each other. A diverged run ends in a cross and its step.
    """
    labels, curves, last = [], [], 0.0
    for name, runs in groups.items():
        look = plots.look(name)
        done = {run.id: curve(run) for run in runs if run.status == "done"}
        for run in (run for run in runs if done.get(run.id) and not band):
            axes.plot(*zip(*done[run.id], strict=True), **faint(look["color"]), **of_run(name, run))
        x, y = mean_of(list(done.values()))
        if x:
            if band and len(done) > 1:
                found = [stats.estimate([dict(one)[at] for one in done.values()]) for at in x]
                axes.fill_between(
                    x, *zip(*((e.low, e.high) for e in found), strict=True), color=look["color"], alpha=0.15
                )
            axes.plot(x, y, **look, **of_mean(name, runs))
            labels.append((x[-1], y[-1], display.name(name), look["color"]))
            curves.append([value for at, value in zip(x, y, strict=True) if at >= start * x[-1]])
            last = max(last, x[-1])
        for run in runs:
            if run.status == "diverged" and curve(run):
                at, value = curve(run)[-1]
                axes.plot(at, value, marker="x", color=look["color"], markersize=7, **of_run(name, run))
                labels.append((at, value, f"{display.name(name)} {run.reason}", look["color"]))
    if not labels:
        plots.empty(axes, "not run: no record")
        return
    if curves:
        top = limits(axes, [height for one in near(curves) for height in one])
        axes.set_xlim(0, last)
        labels = [above(label, top) for label in labels]
    axes.xaxis.set_major_formatter(tokens_label)
    everyone = [run for runs in groups.values() for run in runs]
    axes.set(xlabel=f"training {scale.per(everyone)}s", ylabel=scale.loss(everyone))
    letter_tables(axes, everyone, max(label[1] for label in labels))
    plots.end_labels(axes, labels)


def gap_curve(axes, pair: Pair, colour: str, label: str) -> tuple[float, float, str, str] | None:
    """Adam-mini minus AdamW by tokens, mean and seeds; returns the label of its end."""
    if not pair.complete:
        return None
    gaps = [pair.gaps(tokens) for tokens in pair.tokens]
    for seed in pair.seeds:
        axes.plot(pair.tokens, [gap[seed] for gap in gaps], **faint(colour), label=f"_{pair.name}, seed {seed}")
    means = [sum(gap.values()) / len(gap) for gap in gaps]
    axes.plot(pair.tokens, means, color=colour, label=f"_{pair.name}, mean of {len(pair.seeds)} seeds")
    return pair.tokens[-1], means[-1], label, colour


def corner(axes, names: list[str], side: str = "right") -> None:
    """Names in their colours in an upper corner, where labels at the lines would take a neighbour's place."""
    for k, name in enumerate(names):
        style = {"transform": axes.transAxes, "ha": side, "va": "top", "fontsize": 8}
        axes.text(
            {"left": 0.03, "right": 0.98}[side],
            0.97 - 0.08 * k,
            display.name(name),
            color=plots.look(name)["color"],
            **style,
        )


def by_rate(axes, methods: dict[str, RateGrid], cut: bool = True, names: str = "points") -> None:
    """Final loss by learning rate, one line for each method, its best rate marked; a diverged rate is a cross on top.

    cut: leave far outliers above the picture. names: at the lowest "points", in the "corner", or at the "ends".
    """
    labels, ends, heights = [], [], [score for method in methods.values() for score in method.scores.values()]
    if not heights:
        plots.empty(axes, "not run: no record")
        return
    top, rates = limits(axes, heights, cut), sorted({lr for method in methods.values() for lr in method.rates})
    for name, method in methods.items():
        look = plots.look(name)
        scores = sorted(method.scores.items())
        if scores:
            seeds = scale.seeds(run for runs in method.rates.values() for run in runs)
            label = f"_{display.name(name)}, mean of {seeds}"
            axes.plot(*zip(*scores, strict=True), marker=".", **look, label=label)
            if method.lr:
                best = {
                    "label": f"_{display.name(name)}, best rate: {method.best[0].experiment}/{method.best[0].variant}"
                }
                axes.plot(method.lr, method.scores[method.lr], **{**look, "marker": "o", "markersize": 6}, **best)
            labels.append((*min(scores, key=lambda score: score[1]), display.name(name), look["color"]))
            ends.append(above((*scores[-1], display.name(name), look["color"]), top))
        for lr, runs in method.rates.items():
            if any(run.status == "diverged" for run in runs):
                axes.plot(lr, top, marker="x", color=look["color"], markersize=7, clip_on=False)
    axes.set_xscale("log")
    if rates[-1] < 100 * rates[0]:  # else the decades do
        axes.set_xticks(rates, [f"{lr:g}" if k % 2 == 0 or len(rates) < 5 else "" for k, lr in enumerate(rates)])
    axes.minorticks_off()
    everyone = [run for method in methods.values() for runs in method.rates.values() for run in runs]
    axes.set(xlabel="learning rate", ylabel=scale.loss(everyone, "final validation loss"))
    if names == "corner":
        corner(axes, list(methods), "left")  # small rates diverge least, so that the lines leave this corner free
    elif names == "ends":
        plots.end_labels(axes, ends)
    else:
        low, high = axes.get_ylim()
        axes.margins(x=0.12)
        axes.set_ylim(low - 0.1 * (high - low), high)
        plots.point_labels(axes, labels)


def letter_tables(axes, runs: list[Run], highest: float) -> None:
    """Dotted lines at the loss of a table of two and of three symbols of the same text, where the panel reaches so far.

    highest: where the uppermost curve ends."""
    data = [run.config.get("data") or {} for run in runs]
    text = {(one.get("dataset"), one.get("tokenizer")) for one in data}
    low, high = axes.get_ylim()
    for name, loss in TEXTS.get(text.pop() if len(text) == 1 else None, {}).items():
        if low < loss < high:
            right = loss > highest + 0.04 * (high - low)  # where the curves are below it, else the left end is free
            axes.axhline(loss, color=plots.INK, linewidth=0.8, linestyle=(0, (1, 3)))
            place = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "xytext": (-3 if right else 3, 2),
            }
            place["ha"] = "right" if right else "left"
            place["bbox"] = dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5)  # curves may pass there
            axes.annotate(name, (right, loss), fontsize=7, color=plots.INK, **place)


def side_by_side(axes, rows: list[tuple[str, dict, str]], unit: str, seeds: list[list[float]] | None = None) -> None:
    """Numbers with their intervals, one line each: (label, entry of ExhibitResult.values, colour). Without a number: why.

    seeds: for each line the numbers of single seeds, drawn as thin marks.
    """
    for place, found in enumerate(seeds or []):
        axes.plot(
            found, [place + 0.18] * len(found), "|", color=rows[place][2], alpha=0.6, label=f"_{rows[place][0]}, seeds"
        )
    for place, (_, entry, colour) in enumerate(rows):
        if entry["value"] is None:
            reason = "diverged" if is_result(entry["reason"]) else "not run"
            axes.annotate(
                reason, (0.5, place), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8
            )
            continue
        bars = None if entry.get("low") is None else [[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]]
        words = "" if bars is None else f", {entry['low']:.4g} to {entry['high']:.4g}"
        axes.errorbar([entry["value"]], [place], xerr=bars, fmt="o", color=colour, capsize=3, label=f"_95 %{words}")
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=plots.INK, linewidth=0.8)
    axes.set_xlabel(unit)


def decades(axes, values: list[float]) -> None:
    """Loss or size on a logarithmic axis with plain numbers at a few round places."""
    low, high = min(values), max(values)
    digits = 10 ** math.floor(math.log10((high - low) / 3)) if high > low else 0.1
    for factor in (1, 2, 5, 10):
        if (high - low) / (factor * digits) <= 8:
            break
    step = factor * digits
    ticks = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    axes.set_yscale("log")
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
