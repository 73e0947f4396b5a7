"""Panels that the fine-tuning figures share: a quantity by step with its seeds, and reference levels."""

from collections.abc import Callable

from lowmem.reporting import plots
from lowmem.reporting.exhibit import Run
from lowmem.reporting.numbers.superglue import METHODS
from lowmem.reporting.panels.losses import faint, mean_of, of_mean, of_run

LOOKS = {
    "lora": "adamw",
    "lora_lomo": "adalomo",
    "prefix": "sm3",
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


def level(axes, levels: dict[str, float | None]) -> None:
    """Dotted horizontal lines with their names at the left."""
    known = sorted((height, name) for name, height in levels.items() if height is not None)
    for k, (height, name) in enumerate(known):
        axes.axhline(height, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))
        below = k == 0 and len(known) > 1
        place = {"xytext": (3, -3 if below else 3), "textcoords": "offset points", "va": "top" if below else "bottom"}
        axes.annotate(name, (0, height), xycoords=("axes fraction", "data"), fontsize=8, color=plots.INK, **place)
    axes.margins(y=0.15)
