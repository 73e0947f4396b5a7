"""What the published flags do to Adafactor: with relative step and warm-up its learning rate has no effect.

The Adam-mini paper's baseline runs carry these flags in the released script. Here the same two rates are run with them and
must agree to the last bit, beside a grid of rates that are used.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import final_loss, mean, smallest
from lowmem.reporting.numbers.rate_grids import RateGrid, lead, tuned
from lowmem.reporting.panels.losses import by_rate
from lowmem.reporting.runs import Runs, by_axis
from lowmem.reporting.values import Value, exact, missing, text

EXHIBIT = {
    "id": "extra_adafactor_lr",
    "paper": "extra",
    "label": "Extra",
    "order": 20,
    "kind": "figure",
    "title": "Adafactor with and without a learning rate that is used",
    "experiments": ["llama_variants"],
    "published": None,
}

VERSIONS = {"adafactor": "adafactor_flags", "adafactor_zhai": "zhai_flags"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: inert.largest_difference (over rates, seeds and versions), cost.<version>, cost.least."""
    methods = tuned(next(iter(by_axis(runs, "size").values())))
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Final validation loss of both versions of Adafactor by learning rate: with the rate in use, and with the "
        "published flags, under which all rates give the same run.",
        columns=["version", "rate", "final loss, rate used (nat)", "final loss, published flags (nat)"],
        rows=[],
    )
    for name, flags in VERSIONS.items():
        rates = sorted({*methods[name].rates, *methods[flags].rates})
        for lr in rates:
            cells = [
                text(mean(one.rates[lr]), digits=4) if lr in one.rates else ""
                for one in (methods[name], methods[flags])
            ]
            shown.rows.append([display.name(name), f"{lr:g}", *cells])
        shown.values[f"cost.{name}"] = lead(methods[flags], methods[name])
    shown.values["cost.least"] = smallest(list(shown.values.values()))
    shown.values["inert.largest_difference"] = inert([methods[flags] for flags in VERSIONS.values()])
    shown.figure = draw(methods)
    return shown


def inert(methods: list[RateGrid]) -> Value:
    """Largest difference of final losses between rates at equal seed: an exact number, since nothing is estimated."""
    largest = 0.0
    for method in methods:
        if method.gone or len(method.scores) < len(method.rates):
            return method.gone or missing("not run: a rate diverged")
        by_seed: dict[int, list[float]] = {}
        for runs in method.rates.values():
            for run in runs:
                by_seed.setdefault(run.seed, []).append(final_loss(run))
        largest = max([largest, *(max(found) - min(found) for found in by_seed.values())])
    return exact(largest, "nat")


def draw(methods: dict[str, RateGrid]):
    """Final loss by rate with the published flags and without, a panel for each version."""
    drawn, panels = plots.figure([list(VERSIONS)], height=3.4)
    for name, flags in VERSIONS.items():
        by_rate(panels[name], {key: methods[key] for key in (name, flags)}, cut=False)
        panels[name].set_title(display.name(name))
    return drawn
