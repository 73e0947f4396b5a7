"""Preconditioner maps of Adam-mini (Figure 5 in our count; the paper's number is unknown): r over tau.

r = kappa(D H) / kappa(H) with Adam's D; below 1 it helps. tau is the share of the diagonal in |H|: 1 for a diagonal
block. Medians, because kappa(D H) has no finite mean.
"""

import numpy as np
from matplotlib.colors import BoundaryNorm

from lowmem.analysis.stats import Estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig5",
    "paper": "adam_mini",
    "label": "Figure (number unknown): preconditioner maps",
    "order": 50,
    "kind": "figure",
    "topic": "theory",
    "title": "Adam's preconditioner on diagonal and dense blocks",
    "experiments": ["preconditioner"],
    "published": "adam_mini.figure_tau_r",
}

MAPS = {"by_size": "dimension", "by_kappa": "condition number"}
LEVELS = [0.03, 0.1, 0.3, 1, 3, 10, 30, 100]  # of r: blue below 1, red above
COLUMNS = [
    "map",
    "value",
    "correlation of tau and r",
    "r, diagonal block",
    "r, fully rotated block",
    "r by eigenvalues, diagonal",
    "r by eigenvalues, fully rotated",
    "draws",
]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: trend.worst (largest rank correlation of tau and r over all rows), dense.least (smallest median r at full
    rotation), diagonal.largest_kappa (median r of diagonal blocks at the largest condition number)."""
    shown = ExhibitResult(
        caption="Left, middle: median r over draws, by tau; empty where fewer than 20 draws fell. Right: median r by "
        "tau, range from 25 to 75 %; solid: singular values of D H, dashed: eigenvalues of sqrt(D) H sqrt(D), "
        "which decide the speed of descent. Eigenvalues are spaced by equal ratios; intervals: 95 % bootstrap.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper's grid, draws and way of rotating are unknown; here Q comes from a mix of identity and Gaussian "
            "matrix, and tau = sum |H_ii| / sum |H_ij| (a recalled formula).",
            "D H is not symmetric: r uses singular values; r by eigenvalues is shown beside it.",
        ],
    )
    for what in ("tau", "tau_formula", "trend"):
        shown.published += published_entry(what.replace("_", " "), printed(published, what))
    found = {name: runs.one(part=name) for name in MAPS}
    for name, run in found.items():
        add_rows(shown, name, run)
    summarise(shown, found)
    shown.points = points(found)
    shown.figure = draw(found)
    return shown


def add_rows(shown: ExhibitResult, name: str, run: Run) -> None:
    if run.status != "done":
        shown.rows.append([MAPS[name], "", run.reason, "", "", "", "", ""])
        return
    for value, row in run.final("rows").items():
        keys = ("trend", "diagonal", "full", "diagonal_similar", "full_similar")
        shown.rows.append([MAPS[name], value, *[text(row[key], style=".3g") for key in keys], row["trend"]["n"]])


def as_estimate(value: dict) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"], value["n"], "bootstrap")


def summarise(shown: ExhibitResult, found: dict[str, Run]) -> None:
    reason = "; ".join(f"{name}: {run.reason}" for name, run in found.items() if run.status != "done") or None
    rows = [] if reason else [row for run in found.values() for row in run.final("rows").values()]
    for ending in ("", "_similar"):
        trend, dense = ([as_estimate(row[key + ending]) for row in rows] for key in ("trend", "full"))
        shown.values["trend.worst" + ending] = hn.largest(trend, reason, "rank correlation")
        shown.values["dense.least" + ending] = hn.smallest(dense, reason, "r")
    run = found["by_kappa"]
    largest = None if run.status != "done" else max(run.final("rows").items(), key=lambda item: float(item[0]))[1]
    diagonal = largest and as_estimate(largest["diagonal"])
    reason = run.reason if run.status != "done" else None
    shown.values["diagonal.largest_kappa"] = hn.value(diagonal, reason, "r")


def points(found: dict[str, Run]) -> dict:
    """Every cell of both maps, by both measures."""
    rows = []
    for name, run in found.items():
        arrays = run.arrays()
        for k, value in enumerate(run.final("rows") or {} if arrays else {}):
            for bin, count in enumerate(arrays["count"][k]):
                cells = [arrays[key][k, bin, 1] for key in ("r", "r_similar")]
                numbers = [None if np.isnan(cell) else float(cell) for cell in cells]
                rows.append([MAPS[name], value, float(arrays["edges"][bin]), int(count), *numbers])
    return {"columns": ["map", "value", "tau from", "draws", "median r", "median r by eigenvalues"], "rows": rows}


def draw(found: dict[str, Run]):
    """Two maps of r over tau; median r by tau."""
    drawn, panels = plots.figure([[*MAPS, "curve"]], width=9.6, height=3.5, width_ratios=[1, 1, 1])
    shade = None
    for letter, (name, label) in zip("ab", MAPS.items(), strict=True):
        axes, run = panels[name], found[name]
        arrays = run.arrays()
        if not arrays:
            plots.empty(axes, run.reason or "not run: its arrays are lost")
            continue
        shade = heat(axes, arrays, list(run.final("rows")))
        fixed = {"by_size": f"condition number {run.config['measure']['kappa']}"}
        axes.set(xlabel="tau (1: diagonal)", ylabel=label)
        axes.set_title(f"({letter}) {fixed.get(name, 'dimension ' + str(run.config['measure']['size']))}")
    if shade is not None:
        bar = drawn.colorbar(shade, ax=[panels[name] for name in MAPS], shrink=0.9, pad=0.01, aspect=30)
        bar.set_ticks(LEVELS, labels=[f"{level:g}" for level in LEVELS])
        bar.outline.set_visible(False)
        bar.set_label("median r")
    draw_curves(panels["curve"], found["by_kappa"])
    return drawn


def heat(axes, arrays: dict, names: list[str]):
    """Median r by bin of tau and row; numbers in the cells."""
    from matplotlib import colormaps

    norm = BoundaryNorm(LEVELS, 256, extend="both")
    cells = np.ma.masked_invalid(arrays["r"][:, :, 1])  # (rows, bins)
    shade = axes.pcolormesh(
        arrays["edges"], np.arange(len(names) + 1), cells, norm=norm, cmap=colormaps["RdBu_r"], edgecolors="none"
    )
    for (row, bin), value in np.ndenumerate(cells.filled(np.nan)):
        if not np.isnan(value):
            place = (arrays["edges"][bin] + arrays["edges"][bin + 1]) / 2, row + 0.5
            dark = value >= 30 or value < 0.1
            label = f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.1g}".lstrip("0")
            axes.text(*place, label, ha="center", va="center", fontsize=6.5, color="white" if dark else "#24292f")
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(visible=False)
    return shade


def draw_curves(axes, run: Run) -> None:
    """Median r by tau for the smallest, middle and largest condition number."""
    if run.status != "done":
        plots.empty(axes, run.reason)
        return
    arrays, names = run.arrays(), list(run.final("rows"))
    if not arrays:
        plots.empty(axes, "not run: its arrays are lost")
        return
    middles, labels = (arrays["edges"][1:] + arrays["edges"][:-1]) / 2, []
    for k, colour in zip(sorted({0, len(names) // 2, len(names) - 1}), plots.SERIES):
        known = ~np.isnan(arrays["r"][k, :, 1])
        low, middle, high = arrays["r"][k][known].T
        axes.plot(middles[known], middle, color=colour)
        axes.fill_between(middles[known], low, high, color=colour, alpha=0.15, linewidth=0)
        similar = arrays["r_similar"][k, known, 1]
        axes.plot(middles[known], similar, color=colour, linestyle=(0, (3, 1.5)), linewidth=1.2)
        labels.append((middles[known][-1], middle[-1], f"κ = {names[k]}", colour))
    axes.axhline(1, color=plots.INK, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set(xlabel="tau (1: diagonal)", ylabel="r = κ(DH) / κ(H)")
    axes.set_title(f"(c) dimension {run.config['measure']['size']}")
    plots.end_labels(axes, labels)
