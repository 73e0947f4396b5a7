"""Figure 5 of LOMO: validation accuracy, by step for LoRA and LOMO, and at the end for every method."""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import learnable, scale
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.panels.superglue import by_step, dots, level, levels
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import missing, text

EXHIBIT = {
    "id": "lomo_fig5",
    "paper": "lomo",
    "label": "Figure 5",
    "order": 70,
    "kind": "figure",
    "title": "Validation accuracy, LoRA and LOMO (paper: on BoolQ)",
    "experiments": ["superglue"],
    "published": "lomo.fig5",
    "archived": ["overnight/superglue", "overnight/superglue_pilot"],
}

GROUPS = ("lora", "lomo")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <method>.last (accuracy on BoolQ at the end, percent) of zero, lora and lomo; long.<task>.<method>.last of every
    method on the tasks that tier overnight trains; boolq.learned_margin, the premise of BoolQ's."""
    long_runs = ft.long_runs(runs, tier)
    own, long, tasks = ft.grouped(runs), ft.grouped(long_runs), learnable.trained(long_runs)
    instead = learnable.in_place_of("boolq", tasks, ft.pilot_runs(runs))
    left = "Left: BoolQ after each epoch, mean over seeds, thin lines the seeds; a small tier takes a few steps, which judge "
    left = "" if tier == "overnight" and tasks else f"{left}nothing. Right: "
    right = f"{'at' if left else 'At'} the end of the runs of tier overnight{instead and f' on {instead}'}; "
    shown = ExhibitResult(
        caption=scale.fine_tuned([*runs, *long_runs])
        + f"Accuracy on validation questions. {left}{right}small marks are seeds, large ones their mean, bars 95 % with "
        "the error of seeds and questions. Dotted: no training, and always the most frequent answer.",
        columns=["method", "runs", "last epoch (%)", "best epoch, one seed (%)"],
        rows=[],
        deviations=["Another model, fewer steps and other batches than the paper's; see Table 3."],
    )
    for name in GROUPS:
        found = printed(published, "final_expected_from_table3", optimizer=ft.METHODS[name])
        shown.published += published_entry(f"{ft.METHODS[name]}, end", found)
    for name in ("zero", *GROUPS):
        points = own.get(("boolq", name), {})
        end = ft.last(ft.first(points))
        shown.values[f"{name}.last"] = missing(ft.JUDGES_NOTHING) if tier in ft.LIVE else end
        if points and tier != "overnight":
            best = "" if name == "zero" else text(ft.best(points), digits=1)
            shown.rows.append([ft.METHODS[name], tier, text(end, digits=1), best])
    for task in tasks:
        for name in (name for name in ft.METHODS if (task, name) in long):
            end = ft.last(ft.first(long[task, name]))
            shown.values[f"long.{task}.{name}.last"] = end
            shown.rows.append([ft.METHODS[name], f"{ft.TASKS[task]} (overnight)", text(end, digits=1), ""])
    shown.values["boolq.learned_margin"] = learnable.premise(runs, "boolq", tier)
    shown.figure = draw(own if tier != "overnight" else {}, long, tasks, tier)
    return shown


def draw(live: dict, long: dict, tasks: list[str], tier: str):
    """Accuracy by step of live runs; then every method at the end, a panel for each task."""
    drawn, panels = plots.figure([["live"] * bool(live or not tasks) + tasks], width=9.6, height=4.2)
    if "live" in panels:
        axes, lines = panels["live"], {name: ft.first(live.get(("boolq", name), {})) for name in GROUPS}
        if by_step(axes, lines, ft.accuracies, "validation accuracy (%)", marker="o"):
            level(axes, levels(live, "boolq"))
        axes.set_title(f"BoolQ ({tier}, live: judges nothing)" if tier in ft.LIVE else f"BoolQ ({tier})")
    for task in tasks:
        groups = {name: ft.first(long[task, name]) for name in ft.METHODS if (task, name) in long}
        dots(panels[task], groups, levels(long, task))
        panels[task].set_title(f"{ft.TASKS[task]}, SmolLM2-135M (overnight)")
    return drawn
