"""Figure 13 of Adam-mini: the original Adafactor and the version of Zhai et al. against Adam-mini on Llama (20M, 1B).

The released script runs Adafactor with flags that make its learning rate inert (relative step, warm-up from 1e-6). Both
ways are shown: rates that are used, from a grid as large as Adam-mini's, and the published flags.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean, smallest
from lowmem.reporting.numbers.premises import behind, progress
from lowmem.reporting.numbers.rate_grids import lead, tuned
from lowmem.reporting.panels.losses import by_rate, loss_curves
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig13",
    "paper": "adam_mini",
    "label": "Figure 13",
    "order": 130,
    "kind": "figure",
    "title": "Two versions of Adafactor against Adam-mini",
    "experiments": ["llama_variants"],
    "published": "adam_mini.figure13",
}

VERSIONS = ("adafactor", "adafactor_zhai")
FLAGS = ("adafactor_flags", "zhai_flags")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: lead.<version>, lead.least, lead_flags.<version>, lead_flags.least, of the first model (20M in the paper);
    premises: adamw.behind.largest, flags.fall.least (how far the loss with the flags fell from its start, nat)."""
    sizes = by_axis(runs, "size")
    by_size = {size: chosen(group) for size, group in sizes.items()}
    first = next(iter(sizes))
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Validation loss of each method at its best rate (mean over seeds, thin lines the seeds), and final loss by "
        "learning rate with the best marked. Flags: those of the released script, relative step and warm-up, which make the "
        "rate inert; an arrow gives the final loss of a curve above the picture.",
        columns=["model", "method", "best rate", "rates tried", "final loss (nat)", "lead of Adam-mini (nat)"],
        rows=[],
        deviations=[
            "Adafactor is shown with a rate that is used, too; the released script can only run it with an inert one."
        ],
    )
    shown.published = published_entry("rates at 20M", printed(published, "20M lrs")) + published_entry(
        "rates at 1B", printed(published, "1B lrs")
    )
    for size, methods in by_size.items():
        for name, one in methods.items():
            ahead = lead(one, methods["adam_mini"]) if name != "adam_mini" else None
            loss = text(one.gone or mean(one.best))
            rate = "no effect" if name in FLAGS else one.rate
            shown.rows.append(
                [size, display.name(name), rate, one.rates_tried, loss, text(ahead, True) if ahead else ""]
            )
            if ahead and size == first:
                shown.values[f"{'lead_flags' if name in FLAGS else 'lead'}.{name}"] = ahead
    for key, names in (("lead", VERSIONS), ("lead_flags", FLAGS)):
        found = [shown.values[f"{key}.{name}"] for name in names if f"{key}.{name}" in shown.values]
        shown.values[f"{key}.least"] = smallest(found)
    methods = tuned(sizes[first])
    shown.values["adamw.behind.largest"] = behind(
        methods.get("adamw"), [methods[name] for name in VERSIONS if name in methods]
    )
    shown.values["flags.fall.least"] = smallest(
        progress([run for group in methods[name].rates.values() for run in group]) for name in FLAGS if name in methods
    )
    shown.figure = draw(by_size)
    return shown


def chosen(runs: list[Run]) -> dict:
    """The methods of this figure on one model."""
    found = tuned(runs)
    return {name: found[name] for name in ("adam_mini", *VERSIONS, *FLAGS) if name in found}


def draw(by_size: dict):
    """A row for each size: loss curves at the best rates, final loss by rate."""
    mosaic = [[f"{size} {what}" for what in ("curve", "rate")] for size in by_size]
    drawn, panels = plots.figure(mosaic, height=3.7 * len(by_size), width_ratios=[1.15, 1])
    for size, methods in by_size.items():
        loss_curves(panels[f"{size} curve"], {n: one.best for n, one in methods.items() if not one.gone}, start=0.2)
        panels[f"{size} curve"].set_title(f"Llama {size}: best rate of each")
        by_rate(panels[f"{size} rate"], {name: one for name, one in methods.items() if name not in FLAGS})
        panels[f"{size} rate"].set_title("Rates run here")
    return drawn
