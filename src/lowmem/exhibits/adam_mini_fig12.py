"""Short runs of Llama3-8B and Llama2-13B: training loss, value matrices as one block each.

The paper shows training loss only. At equal seed both optimizers see the same batches, so training losses are paired too.
"""

import math

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, largest, mean, smallest, train_losses, window
from lowmem.reporting.numbers.pairs import ONE_RATE, Pair, pairs
from lowmem.reporting.panels.losses import loss_curves, side_by_side
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import missing, text

EXHIBIT = {
    "id": "adam_mini_fig12",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 120,
    "kind": "figure",
    "title": "Short runs of the largest Llamas",
    "experiments": ["llama_large"],
    "published": "adam_mini.figure_llama8b_13b",
}

MODELS = {"8B": "Llama3-8B", "13B": "Llama2-13B"}
STAGES = {  # name: (measure, what the published value is called)
    "early": (window(0.05, 0.15), "mean_around_step_1000", "5 to 15 %"),
    "middle": (window(0.45, 0.55), "mean_around_step_5000", "45 to 55 %"),
    "end": (window(0.9, 1.0), "mean_last_1000_steps", "last tenth"),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by size and stage. Values: gap.<size>, gap.worst (end), early.least; own_rate.gap.worst."""
    sizes = [size for size in pairs(runs) if size.shape in MODELS]
    found = [run for size in sizes for group in size.runs.values() for run in group]
    shown = ExhibitResult(
        caption=scale.about(found)
        + shapes(sizes)
        + "Training loss, moving mean over 5 % of the steps, mean over seeds; right: Adam-mini minus AdamW in per "
        "cent of the loss, at equal seed and batches with 95 % intervals, and the published gaps (open diamonds, per token).",
        columns=["model", "part of the run", "AdamW loss", "Adam-mini loss", "gap (nat)", "published gap (nat)"],
        rows=[],
        deviations=[
            f"Mean over {scale.seeds(found)}; the paper shows one run per curve. Adam-mini makes one block of each value "
            "matrix, as the official script does for runs of this length."
        ],
    )
    if tier != "paper":
        shown.deviations.append("Shapes are those of this tier, with the features of the models they are named after.")
    entries = {(size.name, stage): add_row(shown, published, size, stage) for size in sizes for stage in STAGES}
    for size in sizes:
        shown.values[f"gap.{size.name}"] = entries[size.name, "end"][0]
    shown.values["gap.worst"] = largest(entries[size.name, "end"][0] for size in sizes)
    shown.values["own_rate.gap.worst"] = missing(ONE_RATE)
    shown.values["early.least"] = smallest(entries[size.name, "early"][0] for size in sizes)
    shown.figure = draw(sizes, entries)
    return shown


def shapes(sizes: list[Pair]) -> str:
    """Which of the paper's two models are shown, as text; empty if neither is."""
    return f"Shape{'s' * (len(sizes) > 1)} of {' and '.join(MODELS[size.shape] for size in sizes)}. " if sizes else ""


def add_row(
    shown: ExhibitResult, published: dict, size: Pair, stage: str
) -> tuple[dict, float | None, dict, float | None]:
    """One row; (our gap, the published gap, both in per cent of the loss)."""
    measure, what, words = STAGES[stage]
    gap = difference(size.runs["adam_mini"], size.runs["adamw"], measure)
    cells = [printed(published, what, size=size.shape, optimizer=o) for o in ("AdamW", "Adam-mini")]
    for optimizer, cell in zip(("AdamW", "Adam-mini"), cells, strict=True):
        shown.published += published_entry(f"{size.shape}, {optimizer}, training loss, {what.replace('_', ' ')}", cell)
    theirs = None if None in cells else cells[1]["value"] - cells[0]["value"]
    share = None if None in cells else 100 * math.log(cells[1]["value"] / cells[0]["value"])
    means = [text(mean(size.runs[o], measure)) for o in ("adamw", "adam_mini")]
    shown.rows.append([size.name, words, *means, text(gap, True), "" if theirs is None else f"{theirs:+.3f}"])

    def logs(run: Run) -> float | None:
        return None if measure(run) is None else 100 * math.log(measure(run))

    return gap, theirs, difference(size.runs["adam_mini"], size.runs["adamw"], logs, "%"), share


def smooth(run: Run) -> list[tuple[float, float]]:
    """[(tokens, moving mean of the training loss over 5 % of the steps)]."""
    found, train = train_losses(run), run.config["train"]
    tokens = train["batch_size"] * train["seq_len"] * train.get("log_every", 1)  # from one loss to the next
    width = max(1, len(found) // 20)
    places = range(width, len(found) + 1, max(1, width // 4))
    return [((at - width / 2) * tokens, sum(found[at - width : at]) / width) for at in places]


def draw(sizes: list[Pair], entries: dict):
    """Training loss of each size; the gap in each part of the runs, with the published ones."""
    drawn, panels = plots.figure([[*(size.name for size in sizes), "gap"]], height=3.6)
    for size in sizes:
        loss_curves(panels[size.name], size.runs, start=0.1, curve=smooth)
        panels[size.name].set_ylabel(scale.loss(size.runs["adamw"], "training loss"))
        panels[size.name].set_title(f"Shape of {MODELS[size.shape]}, {scale.short(size.parameters)} parameters")
    rows, places = [], []
    for size in sizes:
        for stage in STAGES:
            _, _, ours, theirs = entries[size.name, stage]
            if theirs is not None:
                places.append((theirs, len(rows)))
            rows.append((f"{size.shape}, {STAGES[stage][2]}", ours, plots.look("adam_mini")["color"]))
    side_by_side(panels["gap"], rows, "Adam-mini − AdamW (% of loss)")
    if places:
        plots.published_mark(panels["gap"], *zip(*places, strict=True))
    panels["gap"].set_title("Gap: ahead left of zero")
    return drawn
