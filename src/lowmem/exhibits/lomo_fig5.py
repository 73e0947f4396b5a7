"""Figure 5 of LOMO: validation accuracy on BoolQ, by step for LoRA and LOMO, and at the end for every method."""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import Runs, Shown, mark, printed
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.numbers.losses import text, used
from lowmem.reporting.panels.superglue import by_step, dots, level, levels
from lowmem.reporting.values import missing

EXHIBIT = {
    "id": "lomo_fig5",
    "paper": "lomo",
    "label": "Figure 5",
    "order": 70,
    "kind": "figure",
    "title": "Validation accuracy on BoolQ, LoRA and LOMO",
    "experiments": ["superglue"],
    "published": "lomo.fig5",
    "archived": ["overnight/superglue"],
}

GROUPS = ("lora", "lomo")


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: <method>.last (accuracy at the end, percent) of zero, lora and lomo; with long. before it of every method, from
    the runs of tier overnight."""
    live, long = ft.grouped([] if tier == "overnight" else runs), ft.grouped(ft.long_runs(runs, tier))
    shown = Shown(
        caption="Accuracy on BoolQ's validation questions. Left: after each epoch, mean over seeds, thin lines the seeds; in a "
        "small tier a few steps that judge nothing. Right: at the end of the runs of tier overnight; small marks are seeds, "
        "large ones their mean, bars 95 % with the error of seeds and questions. Dotted: no training, and always the most "
        "frequent answer.",
        columns=["method", "runs", "last epoch (%)", "best epoch, one seed (%)"],
        rows=[],
        deviations=["Another model, fewer steps and other batches than the paper's; see Table 3."],
        runs_used=used(run for run in runs if run.variant.startswith("boolq-")),
    )
    for name in GROUPS:
        found = printed(published, "final_expected_from_table3", optimizer=ft.METHODS[name])
        shown.published += mark(f"{ft.METHODS[name]}, end", found)
    for prefix, label, found in (("", tier, live), ("long.", "overnight", long)):
        for name in ft.METHODS if prefix else ("zero", *GROUPS):
            points = found.get(("boolq", name), {})
            if not points and prefix and name not in ("zero", *GROUPS):
                continue
            end = ft.last(ft.first(points))
            shown.values[f"{prefix}{name}.last"] = end
            best = "" if name == "zero" or prefix else text(ft.best(points), digits=1)
            if found:
                shown.rows.append([ft.METHODS[name], label, text(end, digits=1), best])
    for name in ("zero", *GROUPS):
        if tier == "overnight":
            shown.values[f"{name}.last"] = shown.values[f"long.{name}.last"]
        elif tier in ft.LIVE:
            shown.values[f"{name}.last"] = missing(ft.JUDGES_NOTHING)
    shown.figure = draw(live, long, tier)
    return shown


def draw(live: dict, long: dict, tier: str):
    names = [name for name, found in (("live", live), ("long", long)) if found]
    drawn, panels = plots.figure([names], width=9.6, height=4.2)
    if live:
        axes, lines = panels["live"], {name: ft.first(live.get(("boolq", name), {})) for name in GROUPS}
        if by_step(axes, lines, ft.accuracies, "validation accuracy (%)", marker="o"):
            level(axes, levels(live))
        axes.set_title(f"{tier}, live: judges nothing" if tier in ft.LIVE else f"This report ({tier})")
    if long:
        ends = {name: ft.first(long[task, name]) for task, name in long if task == "boolq"}
        dots(panels["long"], {name: ends[name] for name in ft.METHODS if name in ends}, levels(long))
        panels["long"].set_title("SmolLM2-135M (overnight)")
    return drawn
