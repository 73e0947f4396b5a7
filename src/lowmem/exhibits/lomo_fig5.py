"""Figure 5 of LOMO: validation accuracy by step on BoolQ, LoRA and LOMO."""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import Runs, Shown, mark, printed
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.numbers.losses import text, used
from lowmem.reporting.panels.superglue import by_step, level

EXHIBIT = {
    "id": "lomo_fig5",
    "paper": "lomo",
    "label": "Figure 5",
    "order": 70,
    "kind": "figure",
    "title": "Validation accuracy on BoolQ, LoRA and LOMO",
    "experiments": ["superglue"],
    "published": "lomo.fig5",
    "archived": ["laptop/superglue_long"],
}

GROUPS = ("lora", "lomo")


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: <method>.last (accuracy at the end, percent) and the same with long. before it."""
    shown = Shown(
        caption="Accuracy on BoolQ's validation questions after each epoch, mean over seeds, thin lines the seeds; left the "
        "runs of this report, right the longer ones kept in data/records. Dotted: no training (lower label) and always giving "
        "the most frequent answer.",
        columns=["method", "runs", "last epoch (%)", "best epoch, one seed (%)"],
        rows=[],
        deviations=["Another model, fewer steps and fewer questions than the paper's; see Table 3."],
        runs_used=used(run for run in runs if run.variant.startswith("boolq-")),
    )
    for name in GROUPS:
        found = printed(published, "final_expected_from_table3", optimizer=ft.METHODS[name])
        shown.published += mark(f"{ft.METHODS[name]}, end", found)
    panels = {tier: ft.grouped(runs), "archived": ft.grouped(runs.archived)}
    for label, found in panels.items():
        for name in ("zero", *GROUPS):
            points = found.get(("boolq", name), {})
            end = ft.last(ft.first(points))
            shown.values[f"{'long.' if label == 'archived' else ''}{name}.last"] = end
            best = "" if name == "zero" else text(ft.best(points), digits=1)
            shown.rows.append([ft.METHODS[name], label, text(end, digits=1), best])
    shown.figure = draw(panels)
    return shown


def draw(groups: dict):
    drawn, panels = plots.figure([list(groups)], width=9.0, height=3.4)
    for label, found in groups.items():
        axes = panels[label]
        lines = {name: ft.first(found.get(("boolq", name), {})) for name in GROUPS}
        if by_step(axes, lines, ft.accuracies, "validation accuracy (%)", marker="o"):
            zero = ft.last(ft.first(found.get(("boolq", "zero"), {})))["value"]
            frequent = next((run.final("most") for group in lines.values() for run in group if run.final("most")), None)
            level(axes, {"no training": zero, "most frequent answer": frequent})
        axes.set_title("Longer runs, archived" if label == "archived" else f"This report ({label})")
    return drawn
