"""GPT-2 sizes, AdamW against Adam-mini (Figure 10 in our count; the paper's number is unknown).

Same data order and first weights for both optimizers at each seed, so the gap is paired. The paper shows one run per
curve and training loss; here the fixed validation set decides, because at gaps of 0.01 nats unpaired noise does.
"""

import itertools
import math

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import largest, log_loss, smallest
from lowmem.reporting.numbers.pairs import MARGIN, Pair, own_rate, pairs
from lowmem.reporting.panels.losses import (
    faint,
    gap_curve,
    letter_tables,
    limit_to_values,
    limits,
    of_mean,
    of_run,
    tokens_label,
    zero_and_margin,
)
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import Value, as_estimate, estimated, missing, text

EXHIBIT = {
    "id": "adam_mini_fig10",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 100,
    "kind": "figure",
    "title": "GPT-2 sizes, AdamW against Adam-mini",
    "experiments": ["gpt2_sizes"],
    "published": "adam_mini.figure_gpt2_sizes",
}

EARLY, LATE = (0.2, 0.3), (0.9, 1.0)  # parts of the steps: around 5 and 20 of the paper's 20 billion tokens
PUBLISHED_SIZES = {"125M": 124_373_760, "330M": 354_599_936, "1.5B": 1_556_840_000}
COLUMNS = [
    "model",
    "parameters",
    "tokens",
    "AdamW loss",
    "Adam-mini loss",
    "gap at the end",
    "early gap",
    "seeds",
]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by size. Values: gap.<size>, over sizes gap.worst and gap.worst.percent (of AdamW's loss), gap.shrink (early minus
    late training gap), early.least; own_rate.gap.worst.percent where each optimizer has its own best rate."""
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Left: validation loss, mean over seeds. Middle: the gap at equal seed, thin lines the seeds; the axis is linear "
        "up to 0.02 and logarithmic beyond. Right: in per cent of AdamW's loss, so that bytes and the paper's tokens share an "
        "axis; bars are 95 % intervals. "
        "The gap is Adam-mini minus AdamW at equal seed: below zero Adam-mini is ahead. The early gap is that of "
        f"the training losses from 20 to 30 % of the steps. Dotted: the margin, {MARGIN} % of AdamW's loss.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper plots training loss of one run per curve; ours is the loss on a fixed validation set, with "
            f"{scale.seeds(runs)} paired between the optimizers.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Sizes, data and length are those of this tier, not the paper's: see the run list.")
    publish(shown, published)
    sizes = pairs(runs)
    for size in sizes:
        add_row(shown, size)
    shown.values["gap.worst"] = largest(shown.values[f"gap.{size.name}"] for size in sizes)
    shown.values["gap.worst.percent"] = largest(size.final(log_loss, "%") for size in sizes)
    shown.values["gap.shrink"] = smallest(shrink(size) for size in sizes)
    shown.values["early.least"] = smallest(early(size) for size in sizes)
    shown.values["own_rate.gap.worst.percent"] = own_rate(
        runs, lambda own: largest(size.final(log_loss, "%") for size in own)
    )
    shown.points = points(sizes)
    shown.figure = draw(sizes, published_gaps(published))
    return shown


def early(size: Pair) -> Value:
    """The gap of the training losses around a quarter of the run. A diverged side decides nothing here."""
    entry = size.trained(EARLY, LATE)["early"]
    return entry if entry["value"] is not None else missing(entry["reason"])


def shrink(size: Pair) -> Value:
    """Early minus late training gap: above 0 where Adam-mini catches up. A diverged side decides nothing here."""
    change = size.trained(LATE, EARLY)["change"]
    return change if change["value"] is not None else missing(change["reason"])


def add_row(shown: ExhibitResult, size: Pair) -> None:
    """One row of losses and gaps; a size with a run missing or diverged says which instead of averaging the rest."""
    gap, count = size.gap(), f"{size.parameters:,}" if size.parameters else ""
    shown.values[f"gap.{size.name}"] = gap
    if gap["value"] is None:
        shown.rows.append([size.name, count, "", gap["reason"], "", "", "", len(size.seeds)])
        return
    end = size.tokens[-1]
    means = [text(estimated(size.mean(o, end))) for o in ("adamw", "adam_mini")]
    shown.rows.append([size.name, count, f"{end:,}", *means, text(gap, True), text(early(size), True), len(size.seeds)])


def points(sizes: list[Pair]) -> dict:
    """Every plotted loss, by seed."""
    rows = [
        [size.name, optimizer, seed, tokens, loss]
        for size in sizes
        for optimizer, by_seed in size.curves.items()
        for seed, curve in by_seed.items()
        for tokens, loss in curve.items()
    ]
    return {"columns": ["model", "optimizer", "seed", "tokens", "validation loss (nat)"], "rows": rows}


def published_gaps(published: dict) -> dict[str, float]:
    """{size: Adam-mini minus AdamW at 19 to 20 billion tokens, per cent of the loss}, read off the vector figure."""
    gaps = {}
    for size in PUBLISHED_SIZES:
        pair = [printed(published, "mean_train_loss_19_20B", size=size, optimizer=o) for o in ("Adam-mini", "AdamW")]
        if None not in pair:
            gaps[size] = 100 * math.log(pair[0]["value"] / pair[1]["value"])
    return gaps


def publish(shown: ExhibitResult, published: dict) -> None:
    for size in PUBLISHED_SIZES:
        for optimizer in ("AdamW", "Adam-mini"):
            value = printed(published, "mean_train_loss_19_20B", size=size, optimizer=optimizer)
            shown.published += published_entry(f"{size}, {optimizer}, training loss at 19 to 20 B tokens", value)


def draw(sizes: list[Pair], printed_gaps: dict[str, float]):
    """Loss curves, gap by tokens, gap by size with the published ones."""
    drawn, panels = plots.figure([["loss", "gap", "size"]], height=3.7, width_ratios=[1.25, 1.1, 1])
    complete = [size for size in sizes if size.complete]
    if not complete:
        for axes in panels.values():
            plots.empty(axes, "not run: no record")
        return drawn
    draw_loss(panels["loss"], complete)
    draw_gap(panels["gap"], complete)
    draw_by_size(panels["size"], complete, printed_gaps)
    return drawn


def draw_loss(axes, sizes: list[Pair]) -> None:
    """Mean over seeds; the seeds themselves are hardly more than a hint: the gaps beside this have their common part gone."""
    labels, heights = [], []
    for size in sizes:
        for optimizer in ("adamw", "adam_mini"):
            for run in (run for run in size.runs[optimizer] if run.seed in size.seeds):
                losses = [size.curves[optimizer][run.seed][tokens] for tokens in size.tokens]
                style = {**faint(plots.look(optimizer)["color"]), "linewidth": 0.5, "alpha": 0.3}
                axes.plot(size.tokens, losses, **style, **of_run(optimizer, run))
            curve = [size.mean(optimizer, tokens).value for tokens in size.tokens]
            plots.line(axes, size.tokens, curve, optimizer, **of_mean(optimizer, size.runs[optimizer]))
            heights += curve[len(curve) // 4 :]
        labels.append((size.tokens[-1], curve[-1], size.name, plots.INK))
    axes.set(xlabel=f"training {scale.per(sizes[0].runs['adamw'])}s", ylabel=scale.loss(sizes[0].runs["adamw"]))
    axes.set_title("Loss by size")
    axes.xaxis.set_major_formatter(tokens_label)
    axes.set_xlim(0, max(size.tokens[-1] for size in sizes) * 1.16)
    limits(axes, heights)
    for k, optimizer in enumerate(("adamw", "adam_mini")):  # which colour is which, once, above the curves
        axes.plot([0.60, 0.68], [0.95 - 0.08 * k] * 2, transform=axes.transAxes, **plots.look(optimizer))
        style = {"transform": axes.transAxes, "color": plots.look(optimizer)["color"], "va": "center", "fontsize": 8}
        axes.text(0.70, 0.95 - 0.08 * k, display.name(optimizer), **style)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    letter_tables(axes, sizes[0].runs["adamw"], max(label[1] for label in labels))
    plots.end_labels(axes, labels)


def draw_gap(axes, sizes: list[Pair]) -> None:
    """Paired gap by tokens, mean and seeds."""
    labels, shown = [], []
    for size, colour in zip(sizes, itertools.cycle(plots.SERIES)):
        labels.append(gap_curve(axes, size, colour, size.name))
        for tokens in size.tokens:
            shown += size.gaps(tokens).values()
    margin = max(size.margin for size in sizes)
    zero_and_margin(axes, margin)
    axes.set_yscale("symlog", linthresh=0.02)  # the early lead is tens of times the later gap, and both are claims
    axes.set_yticks([-0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.1], ["−0.1", "−0.02", "−0.01", "0", "0.01", "0.02", "0.1"])
    axes.minorticks_off()
    axes.set(xlabel=f"training {scale.per(sizes[0].runs['adamw'])}s", ylabel="Adam-mini − AdamW (nat)")
    axes.set_title("Paired gap")
    axes.xaxis.set_major_formatter(tokens_label)
    axes.set_xlim(0, max(size.tokens[-1] for size in sizes) * 1.2)
    axes.set_ylim(1.2 * min([-0.01, *shown]), 1.5 * max([0.02, *shown]))
    plots.end_labels(axes, labels)


def draw_by_size(axes, sizes: list[Pair], printed_gaps: dict[str, float]) -> None:
    known = [size for size in sizes if size.parameters]
    estimates = [as_estimate(size.final(log_loss, "%")) for size in known]
    colour = plots.look("adam_mini")["color"]
    for size, e in zip(known, estimates, strict=True):
        bars = None if e.low is None else [[e.value - e.low], [e.high - e.value]]
        axes.errorbar([size.parameters], [e.value], yerr=bars, fmt="s", color=colour, capsize=3)
    if known:
        style = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
        axes.annotate("ours", (known[-1].parameters, estimates[-1].value), **style)
    if printed_gaps:
        plots.published_mark(axes, [PUBLISHED_SIZES[size] for size in printed_gaps], list(printed_gaps.values()))
        x = PUBLISHED_SIZES["330M"]
        axes.annotate(
            "published",
            (x, printed_gaps.get("330M", 0)),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    zero_and_margin(axes, MARGIN)
    axes.set_xscale("log")
    axes.set(xlabel="parameters", ylabel="gap at the end, Adam-mini − AdamW (% of loss)")
    axes.set_title("Gap by size")
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if end is not None]
    limit_to_values(axes, [*ends, *printed_gaps.values(), MARGIN])
