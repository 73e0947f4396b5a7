"""Figure 1 of Adam-mini: Llama2-7B at a glance. Loss by tokens and by time."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import log_loss, losses, mean
from lowmem.reporting.numbers.pairs import Pair, pairs
from lowmem.reporting.panels.losses import limits, loss_curves
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig1",
    "paper": "adam_mini",
    "label": "Figure 1",
    "order": 11,
    "kind": "figure",
    "title": "Headline: Llama2-7B",
    "experiments": ["llama_large"],
    "published": "adam_mini.figure1",
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values, Adam-mini minus AdamW at equal tokens: loss.gap (nat), loss.gap.percent (of AdamW's loss)."""
    size = next(size for size in pairs(runs) if size.shape == "7B")
    found = [run for group in size.runs.values() for run in group]
    shown = ExhibitResult(
        caption=scale.about(found)
        + "Validation loss by tokens and by time in training steps, mean over seeds, thin lines the seeds. Both "
        "optimizers use equal batches here; the paper's hours come from a four times larger batch per GPU for Adam-mini.",
        columns=["optimizer", "final loss (nat)", "Adam-mini − AdamW (nat)", "training time (s)", "seeds"],
        rows=[],
        deviations=[
            f"Rate, length and batch of the published run are not known; {scale.seeds(found)} instead of one run."
        ],
    )
    if tier != "paper":
        shown.deviations.append(
            f"The model has the features of the {size.shape} and {scale.short(size.parameters)} parameters."
        )
    for name in ("AdamW", "Adam-mini"):
        shown.published += published_entry(
            f"{name}, last point by eye", printed(published, "end_points_by_eye", optimizer=name)
        )
    gap = shown.values["loss.gap"] = size.gap()
    shown.values["loss.gap.percent"] = size.final(log_loss, "%")
    for optimizer, group in size.runs.items():
        cells = [
            text(mean(group)),
            text(gap, True) if optimizer == "adam_mini" else "",
            text(mean(group, seconds), digits=1),
        ]
        shown.rows.append([display.name(optimizer), *cells, len(size.seeds)])
    shown.figure = draw(size)
    return shown


def seconds(run: Run) -> float | None:
    """Seconds spent in training steps."""
    rows = run.curve() if run.status == "done" else []
    return rows[-1]["seconds"] if rows else None


def timed(run: Run) -> list[tuple[float, float]]:
    """[(seconds, validation loss)]; seconds at equal places of all seeds, from this run's own mean step."""
    last, total = losses(run)[-1][0], seconds(run)
    return [(total * tokens / last, loss) for tokens, loss in losses(run)]


def draw(size: Pair):
    """Loss by tokens, and by time."""
    drawn, panels = plots.figure([["tokens", "time"]], height=3.4)
    draw_loss_by_tokens(panels["tokens"], size)
    draw_loss_by_time(panels["time"], size)
    return drawn


def draw_loss_by_tokens(axes, size: Pair) -> None:
    loss_curves(axes, size.runs, start=0.2)
    axes.set_title("Loss by tokens")


def draw_loss_by_time(axes, size: Pair) -> None:
    """Time is that of training steps; the mean curve of an optimizer has the mean time of its seeds."""
    labels, heights = [], []
    for name, group in size.runs.items():
        done = [timed(run) for run in group if run.status == "done" and losses(run)]
        if not done:
            continue
        look = plots.look(name)
        columns = list(zip(*done, strict=True))
        x = [sum(t for t, _ in column) / len(column) for column in columns]
        y = [sum(loss for _, loss in column) / len(column) for column in columns]
        axes.plot(x, y, **look)
        labels.append((x[-1], y[-1], display.name(name), look["color"]))
        heights += y[len(y) // 5 :]
    if not labels:
        plots.empty(axes, "not run: no record")
        return
    limits(axes, heights)
    axes.set_xlim(0)
    axes.set(xlabel="time in training steps (s)", ylabel=scale.loss(size.runs["adamw"]))
    axes.set_title("Loss by time, equal batches")
    plots.end_labels(axes, labels)
