"""Figure 4 of LOMO: training loss by step on BoolQ, LoRA and LOMO."""

from lowmem.analysis.stats import estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import Run, Runs, Shown, mark, printed
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.numbers.losses import absent, text, used
from lowmem.reporting.panels.superglue import by_step
from lowmem.reporting.values import estimated, missing

EXHIBIT = {
    "id": "lomo_fig4",
    "paper": "lomo",
    "label": "Figure 4",
    "order": 60,
    "kind": "figure",
    "title": "Training loss on BoolQ, LoRA and LOMO",
    "experiments": ["superglue"],
    "published": "lomo.fig4",
    "archived": ["overnight/superglue"],
}

GROUPS = ("lora", "lomo")


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: early_drop.<method>: share of the whole fall of the loss that lies in the first third of the steps; with long.
    before it of the runs of tier overnight."""
    shown = Shown(
        caption="Training loss of each step on BoolQ, mean over seeds, thin lines the seeds; left the runs of this report, "
        "right those of tier overnight. Only the tokens of the answer count.",
        columns=["method", "runs", "first step (nat)", "last tenth (nat)", "fall in the first third"],
        rows=[],
        deviations=["Another model and fewer steps than the paper's 630; see Table 3."],
        runs_used=used(run for run in runs if run.variant.startswith("boolq-")),
    )
    shown.published = mark("what the curve looks like", printed(published, "qualitative"))
    panels = {tier: ft.grouped(runs), "overnight": ft.grouped(ft.long_runs(runs, tier))}
    for label, found in panels.items():
        for name in GROUPS:
            group = ft.first(found.get(("boolq", name), {}))
            early = early_drop(group)
            shown.values |= {f"{prefix}early_drop.{name}": early for prefix in prefixes(label, tier)}
            if tier in ft.LIVE:
                shown.values[f"early_drop.{name}"] = missing(ft.JUDGES_NOTHING)
            shown.rows.append([ft.METHODS[name], label, *ends(group), text(early, digits=2)])
    shown.figure = draw(panels)
    return shown


def prefixes(label: str, tier: str) -> list[str]:
    """What stands before a value of these runs: those of tier overnight are also its report's own."""
    return [""] * (label == tier) + ["long."] * (label == "overnight")


def parts(run: Run) -> tuple[float, float, float]:
    """(loss at the first step, mean around a third of the steps, mean over the last tenth)."""
    losses = [loss for _, loss in ft.losses(run)]
    third = len(losses) // 3
    late = losses[-max(1, len(losses) // 10) :]
    middle = losses[max(third - 1, 0) : third + 2]
    return losses[0], sum(middle) / len(middle), sum(late) / len(late)


def early_drop(group: list[Run]) -> dict:
    """An entry; without a number where the loss did not fall."""
    gone = absent(group, group)
    if gone:
        return gone
    found = [parts(run) for run in group]
    if any(start <= end for start, _, end in found):
        return missing("no number: the loss of a seed did not fall")
    return estimated(estimate([(start - middle) / (start - end) for start, middle, end in found]), "of the fall")


def ends(group: list[Run]) -> list[str]:
    """First and last loss, means over seeds."""
    done = [parts(run) for run in group if run.status == "done"]
    if not done:
        return ["", ""]
    return [f"{sum(found[k] for found in done) / len(done):.3f}" for k in (0, 2)]


def draw(groups: dict):
    drawn, panels = plots.figure([list(groups)], width=9.0, height=3.4)
    for label, found in groups.items():
        lines = {name: ft.first(found.get(("boolq", name), {})) for name in GROUPS}
        by_step(panels[label], lines, ft.losses, "training loss (nat per token)")
        live = label in ft.LIVE
        panels[label].set_title("Overnight" if label == "overnight" else f"{label}{', live: judges nothing' * live}")
    return drawn
