"""Figure 3 of LOMO: LoRA alone and LoRA with LOMO on the base weights, by rank, and LOMO alone, on BoolQ and MultiRC."""

import math

from lowmem.analysis.stats import estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import learnable, scale
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.numbers.losses import absent, widened
from lowmem.reporting.panels.superglue import dots, levels, look
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import Value, estimated, missing, text

EXHIBIT = {
    "id": "lomo_fig3",
    "paper": "lomo",
    "label": "Figure 3",
    "order": 50,
    "kind": "figure",
    "title": "LoRA with and without LOMO, by rank",
    "experiments": ["lora_lomo"],
    "also": {"overnight": ["superglue"], "paper": ["superglue"]},
    "archived": ["overnight/superglue", "overnight/superglue_pilot"],
    "published": "lomo.fig3",
}

TASKS = ("boolq", "multirc")
METHODS = ("lora", "lora_lomo")
PRINTED = {"lora": "LoRA", "lora_lomo": "LoRA+LOMO"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gain (LoRA + LOMO minus LoRA in points, mean over tasks and ranks at equal seed), gain.<task>; long.gain of the
    runs of tier overnight, at rank 2 on the tasks that it trains, which is that tier's gain; adamw.above_frequent, the
    premise of both."""
    own, long_runs = [run for run in runs if run.experiment == "lora_lomo"], ft.long_runs(runs, tier)
    long, tasks = ft.grouped(long_runs), learnable.trained(long_runs)
    instead = learnable.in_place_of("boolq", tasks, ft.pilot_runs(runs))
    cells = placed(own)
    headers = {task: name for run in own for task, name in [ft.asked(run)]}
    shown = ExhibitResult(
        caption=scale.fine_tuned([*own, *long_runs])
        + "Accuracy at the last epoch by rank of the adapters, mean over seeds with 95 % intervals, every method at the "
        "point fixed beforehand; open diamonds: published for LLaMA-13B, filled for LoRA + LOMO. At the left: LOMO alone. Last "
        f"panel: the runs of tier overnight at rank 2{instead and f' ({instead})'}; small marks are seeds, large ones their "
        "mean; dotted: no training, and always the most frequent answer.",
        columns=["data", "method", "rank", "accuracy (%)"],
        rows=[],
        deviations=[
            "Last epoch and a fixed point of the grid where the paper shows the best of both.",
            "Both parts of LoRA + LOMO share one schedule; the adapters' gradients are clipped by their own norm.",
        ],
    )
    for task in TASKS:
        for name in ("lomo", *METHODS):
            for rank in ranks(cells):
                found = printed(
                    published,
                    "accuracy",
                    task=ft.TASKS[task],
                    rank=rank or "none",
                    method=PRINTED.get(name, "LoRA+LOMO"),
                )
                if (name == "lomo") == (rank == 0):
                    shown.published += published_entry(
                        f"{ft.TASKS[task]}, {ft.METHODS[name]}, rank {rank or 'none'}", found
                    )
                if (task, name, rank) in cells:
                    number = ft.last(cells[task, name, rank])
                    shown.rows.append([headers[task], ft.METHODS[name], rank or "none", text(number, digits=1)])
    for task in TASKS:
        if task not in headers:
            shown.rows.append([ft.TASKS[task], "", "", ft.needs(task)])
        shown.values[f"gain.{task}"] = gain(cells, [task])
    shown.values["gain"] = gain(cells, TASKS)
    shown.values["long.gain"] = ft.gain(long, "lora_lomo", "lora")
    judging = long if tier == "overnight" else ft.grouped(run for run in runs if run.experiment == "superglue")
    compared = tasks if tier == "overnight" else TASKS
    shown.values["adamw.above_frequent"] = ft.above_frequent(
        {key: points for key, points in judging.items() if key[0] in compared}, "adamw"
    )
    if tier == "overnight":
        shown.values["gain"] = shown.values["long.gain"]
    elif tier in ft.LIVE:
        shown.values |= {name: missing(ft.JUDGES_NOTHING) for name in shown.values if not name.startswith("long.")}
    for task in tasks:
        for name in ("lomo", *METHODS):
            if points := long.get((task, name)):
                shown.rows.append(
                    [f"{ft.TASKS[task]}, overnight", ft.METHODS[name], *rank_and_accuracy(ft.first(points))]
                )
    shown.figure = draw(cells, headers, published, long, tasks)
    return shown


def rank_and_accuracy(runs: list[Run]) -> list:
    """Last cells of a row: the adapters' rank and the accuracy over seeds."""
    rank = (runs[0].config["model"].get("adapter") or {}).get("rank", "none")
    return [rank, text(ft.last(runs), digits=1)]


def placed(runs: Runs) -> dict[tuple[str, str, int], list[Run]]:
    """{(task, method, rank; 0 without adapters): runs by seed at the method's first point}."""
    points: dict[tuple, dict[str, list[Run]]] = {}
    for run in runs:
        name, point = ft.method(run)
        key = (ft.asked(run)[0], name, run.axes["rank"])
        points.setdefault(key, {}).setdefault(point, []).append(run)
    return {key: ft.first(found) for key, found in points.items()}


def ranks(cells: dict) -> list[int]:
    return sorted({rank for _, _, rank in cells})


def gain(cells: dict, tasks) -> Value:
    """Mean over tasks and ranks of the difference at equal seed, then over seeds, as an entry."""
    pairs = [
        (cells[task, "lora_lomo", rank], cells[task, "lora", rank])
        for task in tasks
        for rank in ranks(cells)
        if (task, "lora_lomo", rank) in cells and (task, "lora", rank) in cells
    ]
    ours, theirs = ([pair[k] for pair in pairs] for k in (0, 1))
    gone = absent(ft.flat(ours), ft.flat(theirs))
    if gone:
        return gone
    over = ft.mean_by_seed(ours), ft.mean_by_seed(theirs)
    entry = estimated(estimate([over[0](seed) - over[1](seed) for seed in ft.common_seeds([*ours, *theirs])]), "points")
    return widened(
        entry, math.sqrt(len(ranks(cells))) * ft.sampling(ours, theirs)
    )  # all ranks answer the same questions


def draw(cells: dict, headers: dict, published: dict, long: dict, tasks: list[str]):
    """Accuracy by rank on two tasks; then the methods on each task that was learned overnight."""
    drawn, panels = plots.figure([[*TASKS, *(f"long {task}" for task in tasks)]], width=12.0, height=3.6)
    for task in tasks:
        groups = {n: ft.first(long[task, n]) for n in ("lomo", *METHODS) if (task, n) in long}
        dots(panels[f"long {task}"], groups, levels(long, task))
        panels[f"long {task}"].set_title(f"{ft.TASKS[task]}, rank 2 (overnight)")
    places = ranks(cells)
    for task in TASKS:
        axes = panels[task]
        axes.set_title(headers.get(task, ft.TASKS[task]))
        if task not in headers:
            plots.empty(axes, ft.needs(task))
            continue
        labels = []
        for k, name in enumerate(("lomo", *METHODS)):
            points = [(places.index(r), ft.last(cells[task, name, r])) for r in places if (task, name, r) in cells]
            points = [(at + 0.06 * (k - 1), entry) for at, entry in points if entry["value"] is not None]
            if not points:
                continue
            colour = look(name)["color"]
            bars = [[e["value"] - e["low"] if e.get("low") is not None else 0 for _, e in points]]
            bars += [[e["high"] - e["value"] if e.get("high") is not None else 0 for _, e in points]]
            x, y = [at for at, _ in points], [entry["value"] for _, entry in points]
            axes.errorbar(x, y, yerr=bars, marker="o", capsize=3, **look(name), label=f"_{ft.METHODS[name]}")
            labels.append((x[-1], y[-1], ft.METHODS[name], colour))
        if not labels:
            plots.empty(axes, "not run: no record")
            continue
        if headers[task] == ft.TASKS[task]:
            mark_published(axes, task, places, published)
        axes.set_xticks(range(len(places)), [str(rank or "none") for rank in places])
        axes.set_xlim(-0.4, len(places) - 0.6)
        axes.set(xlabel="rank of the adapters", ylabel="accuracy (%)")
        plots.end_labels(axes, labels)
    return drawn


def mark_published(axes, task: str, places: list[int], published: dict) -> None:
    """Open diamonds for LoRA, filled ones for LoRA + LOMO; only where the column is the paper's task."""
    for name in METHODS:
        for at, rank in enumerate(places):
            found = printed(published, "accuracy", task=ft.TASKS[task], rank=rank or "none", method=PRINTED[name])
            if found:
                fill = {"markerfacecolor": plots.INK} if name == "lora_lomo" else {}
                label = f"_published, {ft.METHODS[name]}"
                plots.published_mark(axes, [at], [found["value"]], label=label, **fill)
