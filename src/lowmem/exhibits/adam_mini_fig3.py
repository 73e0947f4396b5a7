"""Figure 3 of Adam-mini: the Hessian of a network with eight hidden neurons at three stages of training.

The hidden layer's exact Hessian, its mass inside the eight neurons' blocks against random partitions, and how that
changes with the number of classes, which the paper's later text says sharpens the blocks.
"""

from lowmem.analysis.stats import estimate, paired
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import hessian as hn
from lowmem.reporting.numbers import scale
from lowmem.reporting.panels import matrices
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, unfinished

EXHIBIT = {
    "id": "adam_mini_fig3",
    "paper": "adam_mini",
    "label": "Figure 3",
    "order": 30,
    "kind": "figure",
    "topic": "theory",
    "title": "Hessian of an eight-neuron network during training",
    "experiments": ["hessian_mlp"],
    "published": "adam_mini.figure3",
}

COLUMNS = [
    "classes",
    "training",
    "loss (nat)",
    "mass inside blocks",
    "random partitions (median, 97.5 %)",
    "inside / outside, mean |H|",
    "runs",
]


def size_of(runs: Runs) -> str:
    """'A network of 8 hidden neurons, 100k training pictures. '"""
    run = next(iter(runs), None)
    if run is None:
        return ""
    seen = [run.config["train"]["steps"] * run.config["train"]["batch_size"] for run in runs]
    return f"A network of {run.config['model']['n_hidden']} hidden neurons, {scale.between(seen)} training pictures. "


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: excess.least and share.least over the stages at most classes, classes.effect (most minus fewest,
    without the first stage)."""
    data = next(iter(runs)).config["data"]["dataset"]
    shown = ExhibitResult(
        caption=size_of(runs)
        + "|H| of the hidden layer's weights, ordered by the neuron they enter (white lines) and averaged over "
        f"tiles; data: {data}. Below: share of |H| inside the blocks, and the middle 95 % of 200 random partitions. "
        "Right: that share by number of classes, a dot for each seed; "
        f"dotted: random partitions. Dark rows: neurons that are zero for every picture. "
        f"Intervals in the rows: 95 % over seeds. {matrices.SCALE[0].upper()}{matrices.SCALE[1:]}.",
        columns=COLUMNS,
        rows=[],
        deviations=["The paper also reprints an older plot (Collobert, 2004), which is not redrawn."],
    )
    if data != "cifar100":
        shown.deviations.append(f"{data} stands in for CIFAR-100; sizes and length are those of this tier.")
    for what in ("mnist_rerun_diag_to_offdiag_mean_abs_ratio", "class_count_effect"):
        shown.published += published_entry(what.replace("_", " "), printed(published, what))
    groups = by_classes(runs)
    for count, group in groups.items():
        for stage in hn.stages(group):
            add_row(shown, count, stage, group)
    summarise(shown, groups)
    shown.figure = draw(groups)
    return shown


def by_classes(runs: Runs) -> dict[int, list[Run]]:
    """{number of classes: runs}, ascending."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run.config["measure"]["classes"], []).append(run)
    return dict(sorted(found.items()))


def add_row(shown: ExhibitResult, count: int, stage: str, runs: list[Run]) -> None:
    found = hn.numbers(runs, stage, "hidden", "share", "null", "null_high", "contrast")
    if not found:
        shown.rows.append([count, hn.at(stage), "", unfinished(runs), "", "", ""])
        return
    losses = [run.final("stages")[stage]["loss"] for run in runs if run.status == "done"]
    null, high, contrast = (sum(f[k] for f in found) / len(found) for k in (1, 2, 3))
    share = hn.percent(hn.over_seeds([f[0] for f in found]))
    cells = [share, f"{100 * null:.1f} %, {100 * high:.1f} %", f"{contrast:.1f}", len(found)]
    shown.rows.append([count, hn.at(stage), f"{sum(losses) / len(losses):.3f}", *cells])


def shares(runs: list[Run]) -> dict[int, float]:
    """{seed: share inside the blocks, mean over the stages after the first}.

    At the first stage most weights still have their first value, and dead ReLU neurons make the share of few classes vary
    between seeds by more than the number of classes could.
    """
    found = {}
    for run in runs:
        each = [f[0] for stage in hn.stages(runs)[1:] for f in hn.numbers([run], stage, "hidden", "share")]
        if each:
            found[run.seed] = sum(each) / len(each)
    return found


def summarise(shown: ExhibitResult, groups: dict[int, list[Run]]) -> None:
    """Values for the claims."""
    most, fewest = max(groups), min(groups)
    reason = unfinished(groups[most])
    excess, share = [], []
    for stage in hn.stages(groups[most]):
        found = hn.numbers(groups[most], stage, "hidden", "share", "null_high")
        excess.append(hn.over_seeds([f[0] - f[1] for f in found]))
        share.append(hn.over_seeds([f[0] for f in found]))
    for name, values in (("excess.least", excess), ("share.least", share)):
        shown.values[name] = hn.smallest(values, reason, "of |H|")
    alone = shown.values["share.least"]  # without its parts: a rule with two ends asks about the smallest stage itself
    shown.values["share.smallest"] = {key: found for key, found in alone.items() if key not in ("parts", "pooled")}
    reason = unfinished([*groups[most], *groups[fewest]])
    gaps = list(paired(shares(groups[most]), shares(groups[fewest])).values())
    shown.values["classes.effect"] = hn.value(estimate(gaps) if gaps else None, reason, "of |H|")


def draw(groups: dict[int, list[Run]]):
    """Three stages of the first seed with most classes, and shares by number of classes."""
    runs = groups[max(groups)]
    named = hn.stages(runs)
    drawn, panels = plots.figure([[*named, "classes"]], width=9.6, height=3.1, width_ratios=[1] * len(named) + [1.15])
    run = next((run for run in runs if run.status == "done"), None)
    arrays = run.arrays() if run else {}
    for stage in named:
        picture = arrays.get(f"hidden@{stage}")
        if picture is None:
            plots.empty(panels[stage], unfinished(runs) or "not run: its arrays are lost")
            continue
        *shares, blocks = hn.numbers([run], stage, "hidden", "share", "null_low", "null_high", "blocks")[0]
        matrices.show(panels[stage], picture, blocks, hn.at(stage), hn.inside(*shares))
    if arrays:
        matrices.colour_bar(drawn, [panels[stage] for stage in named])
    draw_classes(panels["classes"], groups, named)
    return drawn


def draw_classes(axes, groups: dict[int, list[Run]], named: list[str]) -> None:
    """Share inside the blocks against the number of classes: a dot for each seed, a line for each stage's mean."""
    labels = []
    for k, (stage, colour) in enumerate(zip(named, plots.SERIES)):
        found = {count: [f[0] for f in hn.numbers(g, stage, "hidden", "share")] for count, g in groups.items()}
        found = {count * 1.06 ** (k - 1): values for count, values in found.items() if values}  # side by side
        if not found:
            continue
        for x, values in found.items():
            axes.plot([x] * len(values), values, "o", color=colour, markersize=3, alpha=0.6)
        means = [sum(values) / len(values) for values in found.values()]
        axes.plot(list(found), means, color=colour)
        labels.append((max(found), means[-1], f"{100 * float(stage):g} %", colour))
    if not labels:
        plots.empty(axes, unfinished(run for group in groups.values() for run in group))
        return
    axes.axhline(1 / 8, color=plots.INK, linestyle=(0, (1, 2)))  # eight equal blocks at random
    axes.set_xscale("log")
    axes.set_xticks(list(groups), [str(count) for count in groups])
    axes.minorticks_off()
    axes.set_xlim(min(groups) * 0.85, max(groups) * 1.7)
    axes.set_ylim(0, 1)
    axes.set(xlabel="classes", ylabel="share of |H| inside blocks")
    axes.set_title("By classes and stage")
    plots.end_labels(axes, labels)
