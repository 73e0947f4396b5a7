"""Ours: is Adam-mini's early deficit a phase of training, a matter of the rate, of the warm-up, or of the first weights?"""

import math
from collections.abc import Iterable

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, losses, mean
from lowmem.reporting.panels.losses import faint
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import Value, missing, text

EXHIBIT = {
    "id": "extra_gap_phase",
    "paper": "extra",
    "label": "Extra",
    "order": 31,
    "kind": "figure",
    "title": "When Adam-mini is behind: steps, rate, warm-up, first weights",
    "experiments": [],
    "also": {"overnight": ["gap_phase"]},
    "archived": ["overnight/gap_phase"],
    "published": None,
}

STARTS = {
    "usual": "Llama 42k",
    "short": "Llama 42k, warm-up 8 steps",
    "long": "Llama 42k, warm-up 244 steps",
    "wide": "Llama 42k, first weights 1/sqrt(width)",
    "gpt2": "GPT-2 85k",
}
COLUMNS = ["model and start", "steps", "rate", "AdamW (nat per byte)", "Adam-mini − AdamW at the end (nat per byte)"]
COLUMNS += ["largest gap on the way", "at AdamW's loss", "seeds"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gap.<start>.<steps>.<rate> at the end, peak.<the same>: the largest mean gap over evaluations after a
    twentieth of the run."""
    found = list(runs) or runs.archived
    cells = pairs(found)
    others = len({key[0] for key, group in cells.items() if gaps_along(group[1], group[0])}) > 1
    shown = ExhibitResult(
        caption=scale.about(run for run in found if run.status == "done") + "Bytes of Shakespeare: difference of "
        "the validation losses of Adam-mini and AdamW, paired by seed, at the end on the whole held-out text. Left: along "
        f"the runs of each length at rate 6e-3 (thin: seeds). {'Middle' if others else 'Right'}: at the end, by rate and "
        f"length.{' Right: other starts at rate 6e-3.' if others else ''} Bars: 95 % over seeds.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "In nobody's paper. What was expected, and a pilot of two seeds, stood in the experiment's file before these runs."
        ],
    )
    for (start, steps, rate), (adamw, adam_mini) in cells.items():
        gap, peak = difference(adam_mini, adamw), largest_on_the_way(adam_mini, adamw)
        name = f"{start}.{steps}.{rate:g}"
        shown.values |= {f"gap.{name}": gap, f"peak.{name}": peak}
        at = "" if peak["value"] is None else f"{peak['adamw']:.2f}"
        cell = "" if peak["value"] is None else f"{peak['value']:+.3f} at step {peak['step']}"
        loss = text(mean(adamw))
        shown.rows.append([STARTS[start], steps, f"{rate:g}", loss, text(gap, signed=True), cell, at, len(adamw)])
    shown.figure = draw({key: group for key, group in cells.items() if gaps_along(group[1], group[0])})
    return shown


def pairs(runs: Iterable[Run]) -> dict[tuple[str, int, float], tuple[list[Run], list[Run]]]:
    """{(start, steps, rate): (AdamW's runs, Adam-mini's runs)} in the order of the experiment file."""
    found: dict[tuple, tuple[list[Run], list[Run]]] = {}
    for run in runs:
        key = (run.axes["start"], run.config["train"]["steps"], run.config["optimizer"]["lr"])
        found.setdefault(key, ([], []))[run.axes["optimizer"] == "adam_mini"].append(run)
    return found


def gaps_along(adam_mini: list[Run], adamw: list[Run]) -> dict[int, dict[int, float]]:
    """{tokens: {seed: gap of the validation losses}} at the evaluations that both runs of a seed have."""
    curves = {run.seed: dict(losses(run)) for run in adamw if run.status == "done"}
    found: dict[int, dict[int, float]] = {}
    for run in (run for run in adam_mini if run.status == "done" and run.seed in curves):
        for tokens, loss in losses(run):
            if tokens in curves[run.seed]:
                found.setdefault(tokens, {})[run.seed] = loss - curves[run.seed][tokens]
    return found


def largest_on_the_way(adam_mini: list[Run], adamw: list[Run]) -> Value:
    """The largest mean gap over the evaluations after a twentieth of the run, with its step and AdamW's loss there."""
    along = gaps_along(adam_mini, adamw)
    late = {tokens: gaps for tokens, gaps in along.items() if tokens >= 0.05 * max(along)}
    if not late:
        return missing("not run: no common evaluation")
    tokens = max(late, key=lambda at: sum(late[at].values()) / len(late[at]))
    theirs = [dict(losses(run))[tokens] for run in adamw if run.status == "done" and tokens in dict(losses(run))]
    train = adamw[0].config["train"]
    value = sum(late[tokens].values()) / len(late[tokens])
    step = tokens // (train["batch_size"] * train["seq_len"])
    return {"value": value, "unit": "nat per byte", "step": step, "adamw": sum(theirs) / len(theirs)}


def draw(cells: dict):
    """The gap along the runs, by rate, and by what a run starts with."""
    starts = len({start for start, _, _ in cells}) > 1
    drawn, panels = plots.figure(
        [["along", "rate", *["start"] * starts]], height=3.7, width_ratios=[1.3, 1.1, *[1.0] * starts]
    )
    if not cells:
        for axes in panels.values():
            plots.empty(axes, "not run: no record")
        return drawn
    draw_along(panels["along"], {key: group for key, group in cells.items() if key[0] == "usual" and key[2] == 6e-3})
    draw_by_rate(panels["rate"], {key: group for key, group in cells.items() if key[0] == "usual"})
    if starts:
        draw_starts(panels["start"], {key: group for key, group in cells.items() if key[2] == 6e-3})
    return drawn


def draw_along(axes, cells: dict) -> None:
    labels, heights = [], []
    for ((_, steps, _), (adamw, adam_mini)), colour in zip(cells.items(), plots.SERIES, strict=False):
        along = gaps_along(adam_mini, adamw)
        if not along:
            continue
        each = adamw[0].config["train"]["batch_size"] * adamw[0].config["train"]["seq_len"]
        x = [tokens / each for tokens in sorted(along)]
        means = [sum(along[tokens].values()) / len(along[tokens]) for tokens in sorted(along)]
        for seed in {seed for gaps in along.values() for seed in gaps}:
            points = [(tokens / each, along[tokens][seed]) for tokens in sorted(along) if seed in along[tokens]]
            axes.plot(*zip(*points, strict=True), **faint(colour), label=f"_{steps:,} steps, seed {seed}")
        axes.plot(x, means, color=colour, marker=".", label=f"_{steps:,} steps, mean")
        labels.append((x[-1], means[-1], f"{steps:,}", colour))
        heights += means
    axes.axhline(0, color=plots.INK, linewidth=0.8)
    axes.set_xscale("log")
    if heights:
        room = 0.35 * (max(heights) - min(0, *heights)) + 1e-3
        axes.set_ylim(min(0, *heights) - room, max(heights) + room)
    axes.set(xlabel="step", ylabel="Adam-mini − AdamW (nat per byte)")
    axes.set_title("Along the run, rate 6e-3")
    plots.end_labels(axes, labels)


def draw_by_rate(axes, cells: dict) -> None:
    labels = []
    lengths = list(dict.fromkeys(steps for _, steps, _ in cells))
    for k, (steps, colour) in enumerate(zip(lengths, plots.SERIES, strict=False)):
        found = {rate: difference(group[1], group[0]) for (_, own, rate), group in cells.items() if own == steps}
        points = [(rate, entry) for rate, entry in sorted(found.items()) if entry["value"] is not None]
        if not points:
            continue
        x = [rate * 1.03 ** (k - 1) for rate, _ in points]
        y = [entry["value"] for _, entry in points]
        ends = [
            (e["low"] if e["low"] is not None else e["value"], e["high"] if e["high"] is not None else e["value"])
            for _, e in points
        ]
        bars = [[value - low for value, (low, _) in zip(y, ends)], [high - value for value, (_, high) in zip(y, ends)]]
        axes.errorbar(x, y, yerr=bars, fmt="o-", color=colour, capsize=3, label=f"_{steps:,} steps")
        labels.append((x[-1], y[-1], f"{steps:,} steps", colour))
    axes.axhline(0, color=plots.INK, linewidth=0.8)
    rates = sorted({rate for _, _, rate in cells})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set(xlabel="learning rate", ylabel="gap at the end (nat per byte)")
    axes.set_title("By rate and length")
    plots.end_labels(axes, labels)


def draw_starts(axes, cells: dict) -> None:
    lengths = [steps for steps in dict.fromkeys(steps for _, steps, _ in cells) if steps <= 2440]
    names = [start for start in STARTS if any(start == own and steps in lengths for own, steps, _ in cells)]
    for steps, colour, shift in zip(lengths, plots.SERIES, (-0.12, 0.12), strict=False):
        for place, start in enumerate(names):
            for (own, length, _), group in cells.items():
                entry = difference(group[1], group[0]) if (own, length) == (start, steps) else {"value": None}
                if entry["value"] is not None:
                    half = 0 if entry.get("high") is None else entry["high"] - entry["value"]
                    style = {"fmt": "o", "color": colour, "capsize": 3, "label": f"_{STARTS[start]}, {steps:,} steps"}
                    axes.errorbar([entry["value"]], [place + shift], xerr=[half if math.isfinite(half) else 0], **style)
    axes.axvline(0, color=plots.INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), [STARTS[name].removeprefix("Llama 42k, ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("gap at the end (nat per byte)")
    axes.set_title("Other starts, rate 6e-3")
    for steps, colour, x in zip(lengths, plots.SERIES, (0.02, 0.45), strict=False):
        axes.text(x, 0.99, f"{steps:,} steps", color=colour, fontsize=8, transform=axes.transAxes, va="top")
