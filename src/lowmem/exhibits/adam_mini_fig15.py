"""CAME, SM3, Lion, LAMB and AdaLomo against Adam-mini on GPT-2, each method at its best rate.

Which of the five the paper's figure shows, and whether it has a second panel on Llama2-1B, is uncertain (see the fact
files); all five run on the model of Figure 8.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean, smallest
from lowmem.reporting.numbers.premises import behind, leads_at
from lowmem.reporting.numbers.rate_grids import choice, lead, tuned
from lowmem.reporting.panels.losses import by_rate, loss_curves, side_by_side
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig15",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 150,
    "kind": "figure",
    "title": "CAME, SM3, Lion, LAMB and AdaLomo against Adam-mini",
    "experiments": ["gpt2_baselines"],
    "published": "adam_mini.figure_other_baselines",
}

BASELINES = ("came", "sm3", "lion", "lamb", "adalomo")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: lead.<baseline>, lead.least; same_rate.lead.least (all at AdamW's best rate); premise: adamw.behind.largest."""
    methods = {n: one for n, one in tuned(runs).items() if n in ("adamw", "adam_mini", *BASELINES)}
    seeds = scale.seeds(run for one in methods.values() for run in one.best)
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Left: validation loss of each method at its best rate, mean over seeds, thin lines the seeds. Middle: final "
        "loss by learning rate, best rates marked. Right: lead of Adam-mini at equal seed with 95 % intervals.",
        columns=["method", "best rate", "rates run", "final loss (nat)", "lead of Adam-mini (nat)"],
        rows=[],
        deviations=[
            "Which methods and models the published figure shows is uncertain; these run on the model of Figure 8.",
            f"{choice(methods.values())}; {seeds}.",
            "AdaLomo updates inside backward, without clipping by the global norm; it clips each update.",
        ],
    )
    shown.published += published_entry("panels", printed(published, "which_panels_exist"))
    for name, one in methods.items():
        if name in BASELINES:
            shown.values[f"lead.{name}"] = lead(one, methods["adam_mini"])
        ahead = text(shown.values[f"lead.{name}"], True) if name in BASELINES else ""
        shown.rows.append([display.name(name), one.rate, one.rates_tried, text(one.gone or mean(one.best)), ahead])
    baselines = [methods[name] for name in BASELINES if name in methods]
    shown.values["lead.least"] = smallest(list(shown.values.values()))
    shown.values["adamw.behind.largest"] = behind(methods.get("adamw"), baselines)
    shown.values["same_rate.lead.least"] = leads_at(methods["adamw"].lr, methods["adam_mini"], baselines)
    shown.figure = draw(methods, shown.values)
    return shown


def draw(methods: dict, values: dict):
    """Loss curves at the best rates, final loss by rate, the lead of each method."""
    drawn, panels = plots.figure([["curves", "rates", "lead"]], height=3.7, width_ratios=[1.1, 1.1, 1])
    loss_curves(panels["curves"], {name: one.best for name, one in methods.items() if not one.gone}, start=0.3)
    panels["curves"].set_title("Best rate of each")
    by_rate(panels["rates"], methods)
    panels["rates"].set_title("Rates run here")
    own = lead(
        methods["adamw"], methods["adam_mini"]
    )  # the row that says whether the others' leads are about Adam-mini
    rows = [(display.name("adamw"), own, plots.look("adamw")["color"])]
    rows += [(display.name(name), values[f"lead.{name}"], plots.look(name)["color"]) for name in BASELINES]
    side_by_side(panels["lead"], rows, "lead of Adam-mini (nat)")
    panels["lead"].set_title("Right of zero: ahead")
    return drawn
