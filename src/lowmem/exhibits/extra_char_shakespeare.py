"""A published CPU result that anyone can check: nanoGPT's small character-level model of tinyshakespeare, 1.88 nats.

The configuration is the workstation tier of the experiment and needs one CPU core for about three minutes a run. Other
tiers train a shortened stand-in on another text and show the archived records of the real one, labelled as such.
"""

import statistics

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, log_loss, mean
from lowmem.reporting.panels.losses import loss_curves
from lowmem.reporting.runs import Run, Runs, where
from lowmem.reporting.values import Value, exact, missing, text

EXHIBIT = {
    "id": "extra_char_shakespeare",
    "paper": "extra",
    "label": "Extra",
    "order": 30,
    "kind": "figure",
    "title": "A published CPU result: character-level tinyshakespeare",
    "experiments": ["char_shakespeare"],
    "published": None,
    "archived": ["workstation/char_shakespeare"],
}

PUBLISHED = 1.88  # README of nanoGPT: validation loss after 2,000 steps, about three minutes on a laptop's CPU
REAL = ("workstation", "paper")  # tiers that run it as published
COLUMNS = ["optimizer", "text", "tier", "steps", "loss on nanoGPT's windows (nat)", "on all validation text (nat)"]
COLUMNS += ["seconds a run", "seeds", "machine"]


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: adamw.starts_loss (on nanoGPT's windows), adamw.val_loss (on all of the text), adamw.seconds (median of the
    runs), gap (Adam-mini minus AdamW, all of the text; gap.percent of AdamW's loss), all of the published setting.
    """
    own = list(runs)
    real = own if tier in REAL else runs.archived
    shown = ExhibitResult(
        caption="Validation loss of a GPT-2 of 0.8 million parameters on characters of tinyshakespeare, settings of nanoGPT's "
        "README; mean over seeds, thin lines the seeds; diamond: the published loss after 2,000 steps.",
        columns=COLUMNS,
        rows=[],
        published=[
            {
                "label": "validation loss after 2,000 steps",
                "value": PUBLISHED,
                "unit": "nat",
                "source": "readme of nanoGPT",
                "confidence": "high",
            }
        ],
        deviations=[
            "nanoGPT's number is an estimate on 240 windows, which follow from its seed; on them its own model has 1.8857, on "
            "the whole validation text 1.9025 (benchmarks/char_shakespeare_control.py). The curves are of the whole text.",
            f"Other training windows than nanoGPT's, and {scale.seeds(real)} where it shows one run; weights decay except "
            "those of norms, as there.",
        ],
    )
    if tier not in REAL:
        shown.deviations.append("Rows marked archived were not run with this report but are kept in data/records.")
    groups = {name: where(real, optimizer=name) for name in ("adamw", "adam_mini")}
    for name, group in groups.items():
        add_row(shown, name, group, archive=tier not in REAL)
    if tier not in REAL:
        for name in groups:
            add_row(shown, name, where(own, optimizer=name))
    shown.values = {
        "adamw.starts_loss": mean(groups["adamw"], starts_loss),
        "adamw.val_loss": mean(groups["adamw"]),
        "adamw.seconds": usual(groups["adamw"]),
        "gap": difference(groups["adam_mini"], groups["adamw"]),
        "gap.percent": difference(groups["adam_mini"], groups["adamw"], log_loss, "%"),
    }
    shown.figure = draw(groups)
    return shown


def add_row(shown: ExhibitResult, name: str, group: list[Run], archive: bool = False) -> None:
    run = next(iter(group), None)
    if run is None:
        shown.rows.append([display.name(name), "", "", "", "not run: no record", "", "", 0, ""])
        return
    data, tier = run.config["data"], (run.record or {}).get("tier", REAL[0] if archive else "")
    words = data["dataset"] if data["dataset"] == "tinyshakespeare" else f"{data['dataset']} (for tinyshakespeare)"
    device = (run.record or {}).get("device") or {}
    machine = f"{device['name']}, one of {device['cores']} cores" if device else ""
    seconds = usual(group)
    place = f"{tier}, archived" if archive else tier
    same = "starts" in (run.config.get("measure") or {})  # the windows are of the published text
    on_windows = text(mean(group, starts_loss), digits=4) if same else "another text"
    cells = [words, place, run.config["train"]["steps"], on_windows, text(mean(group), digits=4)]
    time = f"{seconds['value']:.0f}" if seconds["value"] is not None else ""
    shown.rows.append([display.name(name), *cells, time, sum(r.status == "done" for r in group), machine])


def starts_loss(run: Run) -> float | None:
    """Loss over the windows of nanoGPT's estimate, of the final weights."""
    return run.final("starts_loss")


def usual(group: list[Run]) -> Value:
    """Wall seconds of the median run with its evaluations; the slowest of several tells about the machine's other work."""
    times = [(run.record.get("throughput") or {}).get("run_s") for run in group if run.status == "done"]
    if not times or None in times:
        return missing("not run: no record")
    return exact(statistics.median(times), "s")


def draw(groups: dict[str, list[Run]]):
    """Loss curves, and the published value."""
    drawn, panels = plots.figure([["loss"]], width=6.4, height=3.6)
    loss_curves(panels["loss"], groups)
    if any(run.status == "done" for group in groups.values() for run in group):
        last = 2000 * 12 * 64
        plots.published_mark(panels["loss"], [last], [PUBLISHED], clip_on=False)  # it stands on the edge
        panels["loss"].set_ylim(bottom=min(panels["loss"].get_ylim()[0], PUBLISHED - 0.05))  # below every run of ours
        panels["loss"].annotate(
            f"published {PUBLISHED}",
            (last, PUBLISHED),
            xytext=(-8, -10),
            ha="right",
            fontsize=8,
            textcoords="offset points",
        )
        panels["loss"].set(xlabel="training characters", ylabel="validation loss (nat per character)")
    return drawn
