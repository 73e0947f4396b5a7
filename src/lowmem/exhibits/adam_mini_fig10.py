"""GPT-2 sizes, AdamW against Adam-mini (Figure 10 in our count; the paper's number is unknown).

Same data order and first weights for both optimizers at each seed, so the gap is paired. The paper shows one run per
curve and training loss; here the fixed validation set decides, because at gaps of 0.01 nats unpaired noise does.
"""

import itertools

from lowmem import plots
from lowmem.exhibit import Run, Runs, Shown, mark, printed, unfinished
from lowmem.stats import Estimate, estimate, paired, worst

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

MARGIN = 0.02  # nats; the equivalence margin of workflow/config/claims.yaml, drawn as a dotted line
EARLY = 0.25  # of the run: 5 of the paper's 20 billion tokens
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


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by size. Values: gap.<size>, gap.worst (over sizes), gap.shrink (early minus late gap, worst over sizes)."""
    shown = Shown(
        caption="Validation loss (nats per token) by tokens: mean over seeds, thin lines the seeds; bars are 95 % intervals. "
        "The gap is Adam-mini minus AdamW at equal seed: below zero Adam-mini is ahead. The early gap is taken at the "
        "evaluation nearest to a quarter of the run. Dotted: the margin of 0.02 nat that was fixed beforehand.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The paper plots training loss of one run per curve; ours is the loss on a fixed validation set, with "
            "seeds paired between the optimizers.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Sizes, data and length are those of this tier, not the paper's: see the run list.")
    publish(shown, published)
    sizes = list(dict.fromkeys(run.variant.rsplit("-", 1)[0] for run in runs))
    found = {size: Size(size, runs) for size in sizes}
    for size in found.values():
        add_row(shown, size)
    summarise(shown, list(found.values()))
    shown.points = points(list(found.values()))
    shown.figure = draw(list(found.values()), published_gaps(published))
    return shown


class Size:
    """Both optimizers at one size: curves by seed, paired gaps."""

    def __init__(self, name: str, runs: Runs):
        self.name = name
        self.runs = {o: [run for run in runs if run.variant == f"{name}-{o}"] for o in ("adamw", "adam_mini")}
        self.curves = {
            o: {run.seed: losses(run) for run in group if run.status == "done"} for o, group in self.runs.items()
        }
        self.curves = {
            o: {seed: curve for seed, curve in by_seed.items() if curve} for o, by_seed in self.curves.items()
        }
        self.reason = unfinished(run for group in self.runs.values() for run in group)
        self.seeds = sorted(self.curves["adamw"].keys() & self.curves["adam_mini"].keys())
        shared = [set(dict(self.curves[o][seed])) for o in self.curves for seed in self.seeds]
        self.tokens = sorted(set.intersection(*shared)) if shared else []
        self.parameters = parameters(next(run for group in self.runs.values() for run in group))

    def mean(self, optimizer: str, tokens: int) -> Estimate:
        return estimate([dict(self.curves[optimizer][seed])[tokens] for seed in self.seeds])

    def gaps(self, tokens: int) -> dict[int, float]:
        """{seed: Adam-mini minus AdamW} at a number of tokens."""
        at = {o: {seed: dict(self.curves[o][seed])[tokens] for seed in self.seeds} for o in self.curves}
        return paired(at["adam_mini"], at["adamw"])

    def gap(self, tokens: int) -> Estimate:
        return estimate(list(self.gaps(tokens).values()))

    def early(self) -> int:
        """The evaluation nearest to a quarter of the run."""
        return min(self.tokens, key=lambda tokens: abs(tokens - EARLY * self.tokens[-1]))

    def failed(self) -> str | None:
        """Which side diverged, if the other did not: a result about the method, not a gap."""
        gone = {o for o, group in self.runs.items() if any(run.status == "diverged" for run in group)}
        return {frozenset({"adam_mini"}): "subject", frozenset({"adamw"}): "baseline"}.get(frozenset(gone))


def losses(run: Run) -> list[tuple[int, float]]:
    """[(tokens, validation loss)] of one run, the first evaluation (untrained) left out."""
    return [
        (row["tokens"], row["val_loss"]) for row in run.curve() if row.get("val_loss") is not None and row["tokens"] > 0
    ]


def parameters(run: Run) -> int | None:
    """Parameter count from the record, else by the GPT-2 formula from the configuration."""
    model = run.config.get("model", {})
    if run.final("parameters"):
        return run.final("parameters")
    if not {"n_layer", "n_embd", "vocab_size", "block_size"} <= model.keys():
        return None
    width = model["n_embd"]
    return model["n_layer"] * (12 * width**2 + 2 * width) + (model["vocab_size"] + model["block_size"] + 1) * width


def text(e: Estimate, signed: bool = False) -> str:
    """Value with its interval; one run has none."""
    style = "+.4f" if signed else ".3f"
    return f"{e.value:{style}}" + ("" if e.low is None else f" [{e.low:{style}}, {e.high:{style}}]")


def add_row(shown: Shown, size: Size) -> None:
    """One row of losses and gaps; a size with a run missing or diverged says which instead of averaging the rest."""
    key, count = f"gap.{size.name}", f"{size.parameters:,}" if size.parameters else ""
    if size.reason or not size.tokens:
        reason = size.reason or "not run: no common evaluation"
        shown.values[key] = {"value": None, "reason": reason}
        if size.failed():
            shown.values[key]["failed"] = size.failed()
        shown.rows.append([size.name, count, "", reason, "", "", "", len(size.seeds)])
        return
    shown.runs_used += [run.id for group in size.runs.values() for run in group]
    end, early = size.tokens[-1], size.early()
    gap = size.gap(end)
    shown.values[key] = as_value(gap)
    means = [text(size.mean(o, end)) for o in ("adamw", "adam_mini")]
    shown.rows.append(
        [size.name, count, f"{end:,}", *means, text(gap, True), text(size.gap(early), True), len(size.seeds)]
    )


def as_value(e: Estimate) -> dict:
    return {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "unit": "nat", "method": e.method}


def summarise(shown: Shown, sizes: list[Size]) -> None:
    """gap.worst and gap.shrink over all sizes; both are missing if one size is."""
    missing = [shown.values[f"gap.{size.name}"] for size in sizes if shown.values[f"gap.{size.name}"]["value"] is None]
    if missing:
        sides = {value.get("failed") for value in missing} - {None}
        value = {"value": None, "reason": "; ".join(value["reason"] for value in missing)}
        if sides == {"subject"}:
            value["failed"] = "subject"
        elif sides:
            value["failed"] = "baseline"
        shown.values["gap.worst"] = value
        shown.values["gap.shrink"] = {key: value[key] for key in ("value", "reason")}
        return
    shown.values["gap.worst"] = as_value(worst([size.gap(size.tokens[-1]) for size in sizes]))
    shrunk = []  # late minus early, so that the worst size is the largest; the sign turns back below
    for size in sizes:
        late, early = size.gaps(size.tokens[-1]), size.gaps(size.early())
        shrunk.append(estimate([late[seed] - early[seed] for seed in late]))
    e = worst(shrunk)
    turned = Estimate(-e.value, None if e.high is None else -e.high, None if e.low is None else -e.low, e.n, e.method)
    shown.values["gap.shrink"] = as_value(turned)


def points(sizes: list[Size]) -> dict:
    """Every plotted loss, by seed."""
    rows = [
        [size.name, optimizer, seed, tokens, loss]
        for size in sizes
        for optimizer, by_seed in size.curves.items()
        for seed, curve in by_seed.items()
        for tokens, loss in curve
    ]
    return {"columns": ["model", "optimizer", "seed", "tokens", "validation loss (nat)"], "rows": rows}


def published_gaps(published: dict) -> dict[str, float]:
    """{size: Adam-mini minus AdamW at 19 to 20 billion tokens}, read off the vector figure."""
    gaps = {}
    for size in PUBLISHED_SIZES:
        pair = [printed(published, "mean_train_loss_19_20B", size=size, optimizer=o) for o in ("Adam-mini", "AdamW")]
        if None not in pair:
            gaps[size] = round(pair[0]["value"] - pair[1]["value"], 6)
    return gaps


def publish(shown: Shown, published: dict) -> None:
    for size in PUBLISHED_SIZES:
        for optimizer in ("AdamW", "Adam-mini"):
            value = printed(published, "mean_train_loss_19_20B", size=size, optimizer=optimizer)
            shown.published += mark(f"{size}, {optimizer}, training loss at 19 to 20 B tokens", value)


def draw(sizes: list[Size], printed_gaps: dict[str, float]):
    """Loss curves, gap by tokens, gap by size with the published ones."""
    drawn, panels = plots.figure([["loss", "gap", "size"]], height=3.7, width_ratios=[1.25, 1.1, 1])
    complete = [size for size in sizes if size.tokens]
    if not complete:
        for axes in panels.values():
            plots.empty(axes, "not run: no record")
        return drawn
    draw_loss(panels["loss"], complete)
    draw_gap(panels["gap"], complete)
    draw_by_size(panels["size"], complete, printed_gaps)
    return drawn


def draw_loss(axes, sizes: list[Size]) -> None:
    """Mean over seeds, thin lines for the seeds themselves: with three seeds an interval hides what they do."""
    labels = []
    for size in sizes:
        for optimizer in ("adamw", "adam_mini"):
            for seed in size.seeds:
                losses = dict(size.curves[optimizer][seed])
                axes.plot(
                    size.tokens, [losses[tokens] for tokens in size.tokens], **faint(plots.look(optimizer)["color"])
                )
            curve = [size.mean(optimizer, tokens).value for tokens in size.tokens]
            plots.line(axes, size.tokens, curve, optimizer)
        labels.append((size.tokens[-1], curve[-1], size.name, plots.INK))
    axes.set(xlabel="training tokens", ylabel="validation loss (nat per token)")
    axes.set_title("Loss by size")
    axes.xaxis.set_major_formatter(tokens_label)
    axes.set_xlim(0, max(size.tokens[-1] for size in sizes) * 1.16)
    for k, optimizer in enumerate(("adamw", "adam_mini")):  # which colour is which, once, above the curves
        axes.plot([0.60, 0.68], [0.95 - 0.08 * k] * 2, transform=axes.transAxes, **plots.look(optimizer))
        style = {"transform": axes.transAxes, "color": plots.look(optimizer)["color"], "va": "center", "fontsize": 8}
        axes.text(0.70, 0.95 - 0.08 * k, plots.name(optimizer), **style)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    plots.end_labels(axes, labels)


def draw_gap(axes, sizes: list[Size]) -> None:
    """Paired gap by tokens, mean and seeds."""
    labels, shown = [], []
    for size, colour in zip(sizes, itertools.cycle(plots.SERIES)):
        gaps = [size.gaps(tokens) for tokens in size.tokens]
        for seed in size.seeds:
            axes.plot(size.tokens, [gap[seed] for gap in gaps], **faint(colour))
        means = [sum(gap.values()) / len(gap) for gap in gaps]
        axes.plot(size.tokens, means, color=colour)
        labels.append((size.tokens[-1], means[-1], size.name, colour))
        shown += [*means, *(value for gap in gaps[len(gaps) // 4 :] for value in gap.values())]
    zero_and_margin(axes)
    axes.set(xlabel="training tokens", ylabel="Adam-mini − AdamW (nat)")
    axes.set_title("Paired gap")
    axes.xaxis.set_major_formatter(tokens_label)
    axes.set_xlim(0, max(size.tokens[-1] for size in sizes) * 1.2)
    limit_to_values(axes, shown)
    plots.end_labels(axes, labels)


def faint(colour: str) -> dict:
    """Line keywords of a single seed."""
    return {"color": colour, "linewidth": 0.8, "alpha": 0.45}


def draw_by_size(axes, sizes: list[Size], printed_gaps: dict[str, float]) -> None:
    known = [size for size in sizes if size.parameters]
    estimates = [size.gap(size.tokens[-1]) for size in known]
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
        axes.annotate("published", (x, 0.009), xytext=(0, 12), textcoords="offset points", ha="center", fontsize=8)
    zero_and_margin(axes)
    axes.set_xscale("log")
    axes.set(xlabel="parameters", ylabel="gap at the end, Adam-mini − AdamW (nat)")
    axes.set_title("Gap by size")
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if end is not None]
    limit_to_values(axes, ends + list(printed_gaps.values()))


def zero_and_margin(axes) -> None:
    """No gap as a line, the margin as a dotted one (the caption says so)."""
    axes.axhline(0, color=plots.INK, linewidth=0.8)
    axes.axhline(MARGIN, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))


def limit_to_values(axes, values: list[float]) -> None:
    """The axis shows these values, the margin and zero."""
    low, high = min([0, *values]), max([MARGIN, *values])
    axes.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))


def tokens_label(value: float, _) -> str:
    """1500000 -> 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
