"""Panels that the fine-tuning figures share: a quantity by step with its seeds, methods one below the other, and levels."""

from collections.abc import Callable

from lowmem.reporting import plots
from lowmem.reporting.numbers.superglue import METHODS, Points, first, last
from lowmem.reporting.panels.losses import faint, mean_of, of_mean, of_run
from lowmem.reporting.runs import Run

LOOKS = {
    "lora": "adamw",
    "lora_lomo": "adalomo",
    "prefix": "sm3",
    "lomo_free": "lomo",
    "lomo_bf16": "lomo",
    "lomo_bf16_stochastic": "lomo",
    "adalomo_bf16": "adalomo",
    "adalomo_bf16_stochastic": "adalomo",
}  # adapters take a colour that is free in these figures


def look(name: str) -> dict:
    """Line keywords of a method; LoRA, which AdamW trains, has AdamW's colour."""
    return plots.look(LOOKS.get(name, name))


def by_step(axes, groups: dict[str, list[Run]], curve: Callable, unit: str, **options) -> bool:
    """A mean line over seeds for each method, thin lines for the seeds, names at the ends; False when there is nothing."""
    labels, last = [], 0
    for name, runs in groups.items():
        done = {run.id: found for run in runs if run.status == "done" and (found := curve(run))}
        colour = look(name)["color"]
        for run in (run for run in runs if run.id in done):
            axes.plot(
                *zip(*done[run.id], strict=True),
                **{**faint(colour), "marker": ".", "markersize": 5},
                **of_run(METHODS[name], run),
            )
        x, y = mean_of(list(done.values()))
        if x:
            axes.plot(x, y, **look(name), **options, **of_mean(METHODS[name], runs))
            labels.append((x[-1], y[-1], METHODS[name], colour))
            last = max(last, x[-1])
    if not labels:
        plots.empty(axes, "not run: no record")
        return False
    axes.set_xlim(0, last * 1.04)
    axes.set(xlabel="step", ylabel=unit)
    plots.end_labels(axes, labels)
    return True


def dots(axes, groups: dict[str, list[Run]], levels: dict[str, float | None]) -> bool:
    """Accuracy at the end, a method a line: small marks the seeds, large ones above them their mean with its interval.

    False, and the reason in the panel, when no method has finished.
    """
    done = {name: runs for name, runs in groups.items() if last(runs)["value"] is not None}
    if not done:
        reasons = [last(runs)["reason"] for runs in groups.values()]
        plots.empty(axes, reasons[0] if reasons else "not run: not planned")
        return False
    for place, (name, runs) in enumerate(done.items()):
        entry, colour = last(runs), look(name)["color"]
        for run in runs:
            found = run.final("accuracy")
            axes.plot(found, place + 0.25, "o", color=colour, alpha=0.6, markersize=4, **of_run(METHODS[name], run))
        ends = [entry[key] if entry.get(key) is not None else entry["value"] for key in ("low", "high")]
        axes.hlines(place, *ends, color=colour, linewidth=1.4)
        axes.plot(entry["value"], place, "D", color=colour, markersize=7, **of_mean(METHODS[name], runs))
    axes.set_yticks(range(len(done)), [METHODS[name] for name in done])
    axes.set_ylim(len(done) - 0.4, -1.9)  # the first above the others, names of levels above it
    axes.set(xlabel="accuracy (%)")
    for k, (height, name) in enumerate(sorted((h, n) for n, h in levels.items() if h is not None)):
        axes.axvline(height, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))
        place = {"xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(name, (height, -0.7 - 0.7 * k), fontsize=8, color=plots.INK, **place)
    axes.margins(x=0.25)
    return True


def level(axes, levels: dict[str, float | None]) -> None:
    """Dotted horizontal lines with their names at the left."""
    known = sorted((height, name) for name, height in levels.items() if height is not None)
    for k, (height, name) in enumerate(known):
        axes.axhline(height, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))
        below = k == 0 and len(known) > 1
        place = {"xytext": (3, -3 if below else 3), "textcoords": "offset points", "va": "top" if below else "bottom"}
        axes.annotate(name, (0, height), xycoords=("axes fraction", "data"), fontsize=8, color=plots.INK, **place)
    axes.margins(y=0.15)


def levels(found: dict[tuple[str, str], Points], task: str) -> dict[str, float | None]:
    """Accuracy on a task without training and of always giving its most frequent answer."""
    runs = [run for (other, _), points in found.items() if other == task for run in first(points)]
    frequent = next((run.final("most") for run in runs if run.final("most") is not None), None)
    return {"no training": last(first(found.get((task, "zero"), {})))["value"], "most frequent": frequent}
