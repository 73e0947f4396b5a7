"""Figure 4 of LOMO: training loss by step, LoRA and LOMO, on BoolQ and on the tasks that tier overnight trains."""

from lowmem.analysis.stats import estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import learnable, scale
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.numbers.losses import absent
from lowmem.reporting.panels.superglue import by_step
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import Value, estimated, missing, text

EXHIBIT = {
    "id": "lomo_fig4",
    "paper": "lomo",
    "label": "Figure 4",
    "order": 60,
    "kind": "figure",
    "title": "Training loss, LoRA and LOMO (paper: on BoolQ)",
    "experiments": ["superglue"],
    "published": "lomo.fig4",
    "archived": ["overnight/superglue", "overnight/superglue_pilot"],
}

GROUPS = ("lora", "lomo")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: early_drop.<method>: share of the whole fall of the loss on BoolQ that lies in the first third of the steps;
    with long. before it, the mean over the tasks that tier overnight trains; boolq.learned_margin, the premise of BoolQ's."""
    long_runs = ft.long_runs(runs, tier)
    own, long, tasks = ft.grouped(runs), ft.grouped(long_runs), learnable.trained(long_runs)
    instead = learnable.in_place_of("boolq", tasks, ft.pilot_runs(runs))
    left = "" if tier == "overnight" and tasks else "Left: the runs of this report on BoolQ; right: "
    overnight = f"{'those' if left else 'Runs'} of tier overnight{instead and f' on {instead}'}"
    shown = ExhibitResult(
        caption=scale.fine_tuned([*runs, *long_runs])
        + f"Training loss of each step, mean over seeds, thin lines the seeds. {left}{overnight}. "
        "Only the tokens of the answer count.",
        columns=["method", "runs", "first step (nat)", "last tenth (nat)", "fall in the first third"],
        rows=[],
        deviations=["Another model and fewer steps than the paper's 630; see Table 3."],
    )
    shown.published = published_entry("what the curve looks like", printed(published, "qualitative"))
    panels = {f"{ft.TASKS[task]} (overnight)": (task, long) for task in tasks}
    if tier != "overnight" or not tasks:
        panels = {f"BoolQ ({tier}{', live: judges nothing' * (tier in ft.LIVE)})": ("boolq", own), **panels}
    for title, (task, found) in panels.items():
        for name in GROUPS:
            group = ft.first(found.get((task, name), {}))
            shown.rows.append([ft.METHODS[name], title, *ends(group), text(early_drop([group]), digits=2)])
    for name in GROUPS:
        early = early_drop([ft.first(own.get(("boolq", name), {}))])
        shown.values[f"early_drop.{name}"] = missing(ft.JUDGES_NOTHING) if tier in ft.LIVE else early
        shown.values[f"long.early_drop.{name}"] = early_drop([ft.first(long.get((task, name), {})) for task in tasks])
    shown.values["boolq.learned_margin"] = learnable.premise(runs, "boolq", tier)
    shown.figure = draw(panels)
    return shown


def parts(run: Run) -> tuple[float, float, float]:
    """(loss at the first step, mean around a third of the steps, mean over the last tenth)."""
    losses = [loss for _, loss in ft.losses(run)]
    third = len(losses) // 3
    late = losses[-max(1, len(losses) // 10) :]
    middle = losses[max(third - 1, 0) : third + 2]
    return losses[0], sum(middle) / len(middle), sum(late) / len(late)


def early_drop(groups: list[list[Run]]) -> Value:
    """Mean over tasks (a group of seeds each), then over seeds, as an entry; without a number where the loss did not fall."""
    gone = absent(ft.flat(groups), ft.flat(groups))
    if gone:
        return gone
    shares: dict[int, list[float]] = {}
    for run in ft.flat(groups):
        start, middle, end = parts(run)
        if start <= end:
            return missing("no number: the loss of a seed did not fall")
        shares.setdefault(run.seed, []).append((start - middle) / (start - end))
    return estimated(estimate([sum(found) / len(found) for found in shares.values()]), "of the fall")


def ends(group: list[Run]) -> list[str]:
    """First and last loss, means over seeds."""
    done = [parts(run) for run in group if run.status == "done"]
    if not done:
        return ["", ""]
    return [f"{sum(found[k] for found in done) / len(done):.3f}" for k in (0, 2)]


def draw(groups: dict[str, tuple[str, dict]]):
    """A panel for each task: training loss by step."""
    drawn, panels = plots.figure([list(groups)], width=9.0, height=3.4)
    for title, (task, found) in groups.items():
        lines = {name: ft.first(found.get((task, name), {})) for name in GROUPS}
        by_step(panels[title], lines, ft.losses, "training loss (nat per token)")
        panels[title].set_title(title)
    return drawn
