"""Three ablations of Adam-mini: value matrices as one block, the statistic of a block, blocks of embedding and output.

All run on one model with one AdamW baseline; each variant is shown at its best rate.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean, smallest
from lowmem.reporting.numbers.rate_grids import choice, lead, tuned
from lowmem.reporting.panels.losses import by_rate, loss_curves
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs, by_axis
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig16",
    "paper": "adam_mini",
    "label": "Appendix C",
    "order": 160,
    "kind": "figure",
    "title": "Value as one block, statistics of a block, embedding blocks",
    "experiments": ["llama_variants"],
    "published": "adam_mini.figure_value_whole",
}

STATISTICS = ("max", "min", "l1", "l2")
PANELS = {
    "value": ("a  Value matrices", ("adamw", "adam_mini", "value_whole")),
    "mean": ("b  Statistic (Adam-mini: mean)", ("adam_mini", *STATISTICS)),
    "embedding": ("c  Embedding and output", ("adamw", "adam_mini", "embedding_whole", "embedding_adam")),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: value.gap (one block minus rows), mean.lead (least lead of the mean), embedding.excess (whole minus rows)."""
    first = next(iter(by_axis(runs, "size").values()))
    methods = tuned(first)
    names = list(dict.fromkeys(name for _, names in PANELS.values() for name in names))
    found = [run for run in runs if run.axes["optimizer"] in names]
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Adam-mini with one thing changed, each variant at its best rate: validation loss, mean over seeds (thin lines "
        "the seeds), and below it the final loss by rate, best rates marked.",
        columns=["variant", "best rate", "rates tried", "final loss (nat)", "behind Adam-mini by (nat)"],
        rows=[],
        deviations=[
            "Models, rates and lengths of the published ablations are unknown. "
            f"{choice(methods[name] for name in names if name in methods)}; {scale.seeds(found)}."
        ],
    )
    shown.published = published_entry("guidance", printed(published, "guidance"))
    for name in names:
        one = methods.get(name)
        if one is None:
            continue
        behind = lead(one, methods["adam_mini"]) if name != "adam_mini" else None
        cells = [text(one.gone or mean(one.best)), text(behind, True) if behind else ""]
        shown.rows.append([display.name(name), one.rate, one.rates_tried, *cells])
    shown.values = {
        "value.gap": lead(methods["value_whole"], methods["adam_mini"]),
        "mean.lead": smallest(lead(methods[name], methods["adam_mini"]) for name in STATISTICS),
        "embedding.excess": lead(methods["embedding_whole"], methods["adam_mini"]),
    }
    shown.figure = draw(methods)
    return shown


def draw(methods: dict):
    """Above, each ablation's loss curves at the best rates; below, final loss by rate."""
    drawn, panels = plots.figure([list(PANELS), [f"{name} rate" for name in PANELS]], height=6.2)
    for key, (title, names) in PANELS.items():
        shown = {name: methods[name] for name in names if name in methods}
        loss_curves(panels[key], {name: one.best for name, one in shown.items() if not one.gone}, start=0.3)
        panels[key].set_title(title)
        by_rate(panels[f"{key} rate"], shown)
    for name in ("mean", "embedding"):
        panels[name].set_ylabel("")
        panels[f"{name} rate"].set_ylabel("")
    return drawn
