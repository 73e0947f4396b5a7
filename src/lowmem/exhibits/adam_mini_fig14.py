"""Adafactor beside Adam-mini: its settings swept one at a time (appendix D.7 of the paper).

Rates and the unchanged settings are runs of llama_variants; beta2, epsilon and warm-up those of adafactor_sweeps.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import Run, Runs, Shown, mark, printed
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, mean, smallest, used
from lowmem.reporting.numbers.premises import behind
from lowmem.reporting.numbers.rate_grids import Tuned, lead, models, tuned
from lowmem.reporting.panels.losses import by_rate
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


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: lead.least, over both versions and all settings, on the first model; premise: adamw.behind.largest."""
    size = models(runs)[0]
    methods = tuned([run for run in runs if run.experiment == "llama_variants"], size)
    sweeps = swept(runs, size)
    shown = Shown(
        caption=scale.about(runs)
        + "Final validation loss of both versions of Adafactor, mean over seeds: by learning rate, and with the "
        "largest beta2, epsilon or warm-up changed at one rate (lines as on the left; dotted: the unchanged setting). "
        "Adam-mini stands at its best rate for comparison.",
        columns=["version", "setting", "rate", "final loss (nat)", "lead of Adam-mini (nat)"],
        rows=[],
        deviations=["Which settings the paper swept is known, their values are not."],
        runs_used=used(runs),
    )
    shown.published = mark("swept", printed(published, "swept"))
    leads = add_rows(shown, methods, sweeps)
    shown.values["lead.least"] = smallest(leads)
    shown.values["adamw.behind.largest"] = behind(methods.get("adamw"), [methods[name] for name in VERSIONS])
    shown.figure = draw(methods, sweeps)
    return shown


def swept(runs: Runs, size: str) -> dict[str, dict[str, list[Run]]]:
    """{version: {setting: runs}} of adafactor_sweeps."""
    found: dict[str, dict[str, list[Run]]] = {version: {} for version in VERSIONS}
    for run in runs:
        if run.experiment == "adafactor_sweeps" and run.variant.startswith(f"{size}-"):
            _, version, setting = run.variant.split("-")
            found[version].setdefault(setting, []).append(run)
    return found


def words(setting: str) -> str:
    """beta2_0.95 -> largest beta2 0.95; a dot in an exponent stands for its minus sign."""
    knob, at = setting.split("_")
    return f"{KNOBS[knob]} {at.replace('e.', 'e-').replace('p', ' % of the run')}" + (" step" if at == "1" else "")


def add_rows(shown: Shown, methods: dict[str, Tuned], sweeps: dict) -> list[dict]:
    """Rows of Adam-mini, each version's grid and its swept settings; the leads of Adam-mini."""
    mini, leads = methods["adam_mini"], []
    shown.rows.append(["Adam-mini", "best rate", mini.rate, text(mini.gone or mean(mini.best)), ""])
    for version in VERSIONS:
        one = methods[version]
        leads.append(lead(one, mini))
        shown.rows.append(
            [display.name(version), "best rate", one.rate, text(one.gone or mean(one.best)), text(leads[-1], True)]
        )
        for setting, group in sweeps[version].items():
            entry = mini.gone or difference(group, mini.best)
            leads.append(entry)
            rate = f"{group[0].config['optimizer']['lr']:g}"
            shown.rows.append([display.name(version), words(setting), rate, text(mean(group)), text(entry, True)])
    return leads


def draw(methods: dict[str, Tuned], sweeps: dict):
    drawn, panels = plots.figure([["rate", *KNOBS]], height=3.6, width_ratios=[1.5, 1, 1, 1])
    draw_rates(panels["rate"], methods)
    for knob in KNOBS:
        draw_knob(panels[knob], knob, methods, sweeps)
    return drawn


def draw_rates(axes, methods: dict[str, Tuned]) -> None:
    by_rate(axes, {name: methods[name] for name in ("adam_mini", *VERSIONS)})
    axes.set_title("Learning rate")


def draw_knob(axes, knob: str, methods: dict[str, Tuned], sweeps: dict) -> None:
    """Loss at each value of one setting; the unchanged setting as a dotted line."""
    places: list[str] = []
    for version in VERSIONS:
        groups = {setting: group for setting, group in sweeps[version].items() if setting.startswith(f"{knob}_")}
        losses = {setting: mean(group)["value"] for setting, group in groups.items()}
        known = {setting: loss for setting, loss in losses.items() if loss is not None}
        if not known:
            continue
        look = plots.look(version)
        places = list(groups)
        axes.plot([places.index(s) for s in known], list(known.values()), marker="o", **look)
        lr = next(iter(groups.values()))[0].config["optimizer"]["lr"]
        unchanged = mean(methods[version].rates.get(lr, []))["value"]
        if unchanged is not None:
            axes.axhline(unchanged, color=look["color"], linewidth=1, linestyle=(0, (1, 2)))
    if not places:
        plots.empty(axes, "not run: no record")
        return
    axes.set_xticks(range(len(places)), [words(p).removeprefix(KNOBS[knob]).replace(" of the run", "") for p in places])
    axes.margins(x=0.25, y=0.25)
    axes.set_title(KNOBS[knob][0].upper() + KNOBS[knob][1:])
