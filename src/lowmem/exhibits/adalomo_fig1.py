"""Figure 1 of AdaLomo: SGD, SGD with momentum, SGD scaled by the second moment, and Adam. Which moment matters?"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean
from lowmem.reporting.numbers.rate_grids import lead, tuned
from lowmem.reporting.panels.losses import by_rate, loss_curves
from lowmem.reporting.runs import Runs
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adalomo_fig1",
    "paper": "adalomo",
    "label": "Figure 1",
    "order": 10,
    "kind": "figure",
    "topic": "theory",
    "title": "Momentum or second moment",
    "experiments": ["adalomo_moments"],
    "published": "adalomo.fig1",
}

METHODS = ("sgd", "momentum", "variance", "adam")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: variance_over_momentum (nats by which the second moment alone is ahead), each method's lead over SGD."""
    methods = tuned(runs)
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Left: validation loss of each method at its best rate, mean over seeds, thin lines the seeds. Right: final "
        "loss by learning rate, best rates marked.",
        columns=["method", "best rate", "rates tried", "final loss (nat)", "ahead of SGD (nat)"],
        rows=[],
        deviations=[
            "The paper fine-tunes LLaMA-7B on instructions, and no number of its figure is known; here a small Llama "
            "learns from scratch.",
            "Second moment: Adam with beta1 = 0.",
        ],
    )
    for name in METHODS:
        one = methods[name]
        ahead = lead(methods["sgd"], one) if name != "sgd" else None
        if ahead:
            shown.values[f"{name}_over_sgd"] = ahead
        cells = [text(one.gone or mean(one.best)), text(ahead, True) if ahead else ""]
        shown.rows.append([display.name(name), one.rate, one.rates_tried, *cells])
    shown.values["variance_over_momentum"] = lead(methods["momentum"], methods["variance"])
    shown.figure = draw(methods)
    return shown


def draw(methods: dict):
    """Loss curves at the best rate of each method; final loss by rate."""
    drawn, panels = plots.figure([["curves", "rates"]], width=9.4, height=3.6)
    loss_curves(panels["curves"], {name: one.best for name, one in methods.items() if not one.gone}, start=0.3)
    panels["curves"].set_title("Best rate of each")
    by_rate(panels["rates"], methods, names="corner")
    panels["rates"].set_title("Rates run here")
    return drawn
