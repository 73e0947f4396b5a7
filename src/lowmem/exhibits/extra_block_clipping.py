"""Ours: what clipping of gradients does to AdamW and Adam-mini at high rates and short warm-up."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, final_loss, mean
from lowmem.reporting.runs import Run, Runs, where
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "extra_block_clipping",
    "paper": "extra",
    "label": "Extra",
    "order": 36,
    "kind": "figure",
    "title": "Clipping at high rates and short warm-up",
    "experiments": [],
    "also": {"overnight": ["block_clipping"]},
    "archived": ["overnight/block_clipping"],
    "published": None,
}

WARMUPS = {"usual": "warm-up 50 steps", "short": "warm-up 6 steps"}
CLIPS = {"clipped": "by global norm 1.0", "free": "none"}
COLUMNS = ["warm-up", "rate", "clipping", "AdamW (nat per character)", "Adam-mini (nat per character)"]
COLUMNS += ["Adam-mini − AdamW", "Adam-mini without − with clipping", "seeds"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Rows by warm-up, rate and clipping. Values: gap.<warm-up>.<rate>.<clip>, Adam-mini minus AdamW; and
    effect.<warm-up>.<rate>, Adam-mini without minus with clipping."""
    found = list(runs) or runs.archived
    shown = ExhibitResult(
        caption=scale.about(found)
        + "Loss on the whole held-out text at the best rate of AdamW and at twice and four times that, with the usual and a "
        "short warm-up; gradients clipped by their global norm, or not. Marks: seeds; lines: their means; a "
        "cross at the top: a seed diverged. Wen et al. (2025) see Adam-mini break down at such settings, in a code that clips "
        "AdamW's gradients but not those of Adam-mini's blocks.",
        columns=COLUMNS,
        rows=[],
        deviations=["All gradients are clipped or none; the clipping of that code lies between."],
    )
    rates = sorted({run.config["optimizer"]["lr"] for run in found})
    for warmup in WARMUPS:
        for lr in rates:
            group = {key: part(found, warmup, *key, lr) for key in keys()}
            effect = difference(group["free", "adam_mini"], group["clipped", "adam_mini"])
            shown.values[f"effect.{warmup}.{lr:g}"] = effect
            for clip, words in CLIPS.items():
                adamw, mini = group[clip, "adamw"], group[clip, "adam_mini"]
                gap = shown.values[f"gap.{warmup}.{lr:g}.{clip}"] = difference(mini, adamw)
                losses = [text(mean(adamw)), text(mean(mini)), text(gap, True)]
                of_clip = text(effect, True) if clip == "free" else ""
                shown.rows.append([WARMUPS[warmup], f"{lr:g}", words, *losses, of_clip, len(mini)])
    shown.figure = draw(found, rates)
    return shown


def keys() -> list[tuple[str, str]]:
    return [(clip, optimizer) for clip in CLIPS for optimizer in ("adamw", "adam_mini")]


def part(runs: list[Run], warmup: str, clip: str, optimizer: str, lr: float) -> list[Run]:
    return where(runs, warmup=warmup, clip=clip, optimizer=optimizer, lr=lr)


def draw(runs: list[Run], rates: list[float]):
    """Final loss by rate, a panel for each length of warm-up."""
    drawn, panels = plots.figure([list(WARMUPS)], width=9.0, height=3.6)
    losses = [loss for run in runs if (loss := final_loss(run)) is not None]
    for warmup, title in WARMUPS.items():
        axes = panels[warmup]
        axes.set_title(title.capitalize())
        if not losses:
            plots.empty(axes, "not run: no record")
            continue
        top = max(losses) * 1.03
        labels = [one_line(axes, runs, warmup, *key, rates, top) for key in keys()]
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{lr:g}" for lr in rates])
        axes.minorticks_off()
        axes.set_xlim(rates[0] / 1.1, rates[-1] * 2.2)
        axes.set(xlabel="learning rate", ylabel="final loss (nat per character)" if warmup == "usual" else "")
        plots.end_labels(axes, [label for label in labels if label])
    return drawn


def one_line(axes, runs: list[Run], warmup: str, clip: str, optimizer: str, rates: list[float], top: float):
    """Seeds, means and their label (x, y, text, colour) of one optimizer and clipping; None without any loss."""
    look = {**plots.look(optimizer), **({"linestyle": ":"} if clip == "free" else {})}
    means = []
    for lr in rates:
        found = [final_loss(run) for run in part(runs, warmup, clip, optimizer, lr)]
        known = [loss for loss in found if loss is not None]
        axes.plot([lr] * len(known), known, linestyle="none", marker=".", color=look["color"], alpha=0.5)
        if len(known) < len(found):
            axes.plot([lr], [top], linestyle="none", marker="x", color=look["color"])
        elif known:
            means.append((lr, sum(known) / len(known)))
    if not means:
        return None
    axes.plot(*zip(*means), **look)
    return (*means[-1], f"{display.name(optimizer)}{'' if clip == 'clipped' else ', free'}", look["color"])
