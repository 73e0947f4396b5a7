"""Adafactor beside Adam-mini: its settings swept one at a time (appendix D.7 of the paper).

Rates and the unchanged settings are runs of llama_variants; beta2, epsilon and warm-up those of adafactor_sweeps.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, mean, smallest
from lowmem.reporting.numbers.premises import behind
from lowmem.reporting.numbers.rate_grids import RateGrid, lead, tuned
from lowmem.reporting.panels.losses import by_rate
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, by_axis, where
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "adam_mini_fig14",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 140,
    "kind": "figure",
    "title": "Adafactor: settings swept one at a time",
    "experiments": ["llama_variants", "adafactor_sweeps"],
    "published": "adam_mini.appendix_adafactor_sweeps",
}

VERSIONS = ("adafactor", "adafactor_zhai")
KNOBS = {"beta2": "largest beta2", "eps": "epsilon", "warmup": "warm-up"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: lead.least, over both versions and all settings, on the first model; premise: adamw.behind.largest."""
    first = next(iter(by_axis(runs, "size").values()))
    methods = tuned(run for run in first if run.experiment == "llama_variants")
    sweeps = swept(first)
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Final validation loss of both versions of Adafactor, mean over seeds: by learning rate, and with the "
        "largest beta2, epsilon or warm-up changed at one rate (lines as on the left; dotted: the unchanged setting). "
        "Adam-mini stands at its best rate for comparison.",
        columns=["version", "setting", "rate", "final loss (nat)", "lead of Adam-mini (nat)"],
        rows=[],
        deviations=["Which settings the paper swept is known, their values are not."],
    )
    shown.published = published_entry("swept", printed(published, "swept"))
    leads = add_rows(shown, methods, sweeps)
    shown.values["lead.least"] = smallest(leads)
    shown.values["adamw.behind.largest"] = behind(methods.get("adamw"), [methods[name] for name in VERSIONS])
    shown.figure = draw(methods, sweeps)
    return shown


def swept(runs: list[Run]) -> dict[str, dict[tuple, list[Run]]]:
    """{version: {(knob, what it is set to): runs}} of adafactor_sweeps."""
    return {version: by_axis(where(runs, version=version), "knob", "to") for version in VERSIONS}


def add_rows(shown: ExhibitResult, methods: dict[str, RateGrid], sweeps: dict) -> list[dict]:
    """Rows of Adam-mini, each version's grid and its swept settings; the leads of Adam-mini."""
    mini, leads = methods["adam_mini"], []
    shown.rows.append(["Adam-mini", "best rate", mini.rate, text(mini.gone or mean(mini.best)), ""])
    for version in VERSIONS:
        one = methods[version]
        leads.append(lead(one, mini))
        shown.rows.append(
            [display.name(version), "best rate", one.rate, text(one.gone or mean(one.best)), text(leads[-1], True)]
        )
        for (knob, to), group in sweeps[version].items():
            entry = mini.gone or difference(group, mini.best)
            leads.append(entry)
            rate = f"{group[0].config['optimizer']['lr']:g}"
            shown.rows.append(
                [display.name(version), f"{KNOBS[knob]} {to}", rate, text(mean(group)), text(entry, True)]
            )
    return leads


def draw(methods: dict[str, RateGrid], sweeps: dict):
    """Final loss by rate, and by each setting of Adafactor."""
    drawn, panels = plots.figure([["rate", *KNOBS]], height=3.6, width_ratios=[1.5, 1, 1, 1])
    draw_rates(panels["rate"], methods)
    for knob in KNOBS:
        draw_knob(panels[knob], knob, methods, sweeps)
    return drawn


def draw_rates(axes, methods: dict[str, RateGrid]) -> None:
    by_rate(axes, {name: methods[name] for name in ("adam_mini", *VERSIONS)})
    axes.set_title("Learning rate")


def draw_knob(axes, knob: str, methods: dict[str, RateGrid], sweeps: dict) -> None:
    """Loss at each value of one setting; the unchanged setting as a dotted line."""
    places: list[str | float] = []
    for version in VERSIONS:
        groups = {to: group for (own, to), group in sweeps[version].items() if own == knob}
        losses = {to: mean(group)["value"] for to, group in groups.items()}
        known = {to: loss for to, loss in losses.items() if loss is not None}
        if not known:
            continue
        look = plots.look(version)
        places = list(groups)
        axes.plot([places.index(to) for to in known], list(known.values()), marker="o", **look)
        lr = next(iter(groups.values()))[0].config["optimizer"]["lr"]
        unchanged = mean(methods[version].rates.get(lr, []))["value"]
        if unchanged is not None:
            axes.axhline(unchanged, color=look["color"], linewidth=1, linestyle=(0, (1, 2)))
    if not places:
        plots.empty(axes, "not run: no record")
        return
    axes.set_xticks(range(len(places)), [str(to).removesuffix(" of the run") for to in places])
    axes.margins(x=0.25, y=0.25)
    axes.set_title(KNOBS[knob][0].upper() + KNOBS[knob][1:])
