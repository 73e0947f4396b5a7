"""The longest Llama run of Adam-mini's scaling family (1B in the paper): loss and gap over the whole run.

Read off the paper's vector figure, Adam-mini starts behind AdamW and ends ahead; the two ends of the run are two claims.
"""

from lowmem.analysis.stats import estimate
from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import window
from lowmem.reporting.numbers.pairs import MARGIN, Pair, own_rate, pairs
from lowmem.reporting.panels.losses import gap_curve, limit_to_values, loss_curves, zero_and_margin
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig11",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 110,
    "kind": "figure",
    "title": "The longest Llama run of this tier",
    "experiments": ["llama_scaling"],
    "also": {"laptop": ["llama_long"], "overnight": ["llama_long"]},
    "published": "adam_mini.figure_llama1b",
}

EARLY, LATE = (0.005, 0.1), (0.9, 1.0)  # parts of the steps; the published gaps begin at 1k of 200k steps
PARTS = [EARLY, (0.1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.0)]
WHAT = "mean_gap_mini_minus_adamw_by_step_range."
PUBLISHED = {"1-5k": 3, "5-10k": 7.5, "10-20k": 15, "20-40k": 30, "40-60k": 50, "60-80k": 70, "80-100k": 90}
PUBLISHED |= {"100-130k": 115, "130-160k": 145, "160-180k": 170, "180-200k": 190}  # middle of the range, thousand steps
PUBLISHED_STEPS = 200


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by part of the run. Values, of training losses: gap.early, gap.late, gap.change (late minus early), gap.slope (by
    e-fold of steps from a tenth of the run on); own_rate.gap.late where each optimizer has its own best rate."""
    size = pairs(runs)[-1]
    found = [run for group in size.runs.values() for run in group]
    shown = ExhibitResult(
        caption=scale.about(found)
        + "The longest of the Llama runs: validation loss, and the gap Adam-mini minus AdamW at "
        "equal seed over the share of the run that is done; mean over seeds, thin lines the seeds, shaded the 95 % interval. "
        "Open diamonds: the "
        "published gaps of Llama2-1B at the same share. Rows: gap of the training losses, on equal batches. Dotted: the "
        f"margin, {MARGIN} % of AdamW's loss.",
        columns=["part of the run", "gap, Adam-mini − AdamW (nat)", "published, Llama2-1B (nat)", "seeds"],
        rows=[],
        deviations=[
            f"A fixed validation set and {scale.seeds(found)}; the paper shows one run on a validation stream that moves on."
        ],
    )
    if tier != "paper":
        shown.deviations.append(f"The model is {size.name}, not 1B: the one that this tier trains longest.")
    marks = publish(shown, published)
    for part in PARTS:
        inside = [gap for share, gap in marks if part[0] <= share < part[1]]
        paper = f"{sum(inside) / len(inside):+.4f}" if inside else ""
        cells = [
            f"{100 * part[0]:g} to {100 * part[1]:.0f} %",
            text(size.final(window(*part)), True),
            paper,
            len(size.seeds),
        ]
        shown.rows.append(cells)
    shown.values = {f"gap.{name}": entry for name, entry in size.trained(EARLY, LATE).items()}
    slope = shown.values["gap.slope"] = size.slope()
    shown.rows.append(["change for each e-fold of steps, from 10 %", text(slope, True), "", len(size.seeds)])
    shown.values["own_rate.gap.late"] = own_rate(runs, lambda sizes: sizes[-1].trained(EARLY, LATE)["late"])
    shown.figure = draw(size, marks)
    return shown


def publish(shown: ExhibitResult, published: dict) -> list[tuple[float, float]]:
    """[(share of the run, gap)] of the paper."""
    found = []
    for steps, middle in PUBLISHED.items():
        cell = printed(published, f"{WHAT}{steps}")
        shown.published += published_entry(f"gap at {steps} of 200k steps", cell)
        if cell:
            found.append((middle / PUBLISHED_STEPS, cell["value"]))
    return found


def draw(size: Pair, marks: list[tuple[float, float]]):
    """Loss curves; the gap along the run, ours and the paper's."""
    drawn, panels = plots.figure([["loss", "gap"]], height=3.6, width_ratios=[1, 1.15])
    loss_curves(panels["loss"], size.runs, start=0.1)
    panels["loss"].set_title(f"Validation loss, {named(size)}")
    draw_gap(panels["gap"], size, marks)
    return drawn


def named(size: Pair) -> str:
    """'31.4k parameters'."""
    return f"{scale.short(size.parameters)} parameters" if size.parameters else size.name


def draw_gap(axes, size: Pair, marks: list[tuple[float, float]]) -> None:
    label = gap_curve(axes, size, plots.look("adam_mini")["color"], "ours")
    shown = [gap for _, gap in marks]
    if label and len(size.seeds) > 1:
        found = [estimate(list(size.gaps(tokens).values())) for tokens in size.tokens]
        colour = plots.look("adam_mini")["color"]
        axes.fill_between(
            size.tokens, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.1, linewidth=0
        )
    if label:
        shown += [gap for tokens in size.tokens[1:] for gap in size.gaps(tokens).values()]
        last = size.tokens[-1]
        axes.set_xticks([last * k / 5 for k in range(6)], [f"{20 * k} %" for k in range(6)])
    else:
        last = 1.0
        axes.text(0.5, 0.6, size.gap()["reason"][:60], ha="center", transform=axes.transAxes, fontsize=8)
    if marks:
        plots.published_mark(axes, [share * last for share, _ in marks], [gap for _, gap in marks])
        axes.annotate(
            "published, 1B",
            (marks[-1][0] * last, marks[-1][1]),
            xytext=(8, -13),
            textcoords="offset points",
            fontsize=8,
            annotation_clip=False,
        )
    zero_and_margin(axes, size.margin)
    limit_to_values(axes, [*shown, size.margin])
    axes.set_xlim(0, last * 1.14)
    unit = scale.per(run for group in size.runs.values() for run in group)
    axes.set(xlabel="share of the run", ylabel=f"Adam-mini − AdamW\n(nat per {unit}; 1B: per token)")
    axes.set_title("Gap: behind above zero, ahead below")
    if label:
        plots.end_labels(axes, [label])
