"""Figure 8 of Adam-mini: GPT-2 against memory-lean baselines, distance of trajectories, sensitivity.

The paper gives every method AdamW's rate. Below the paper tier every method has a rate of its own: the best of a grid in
workflow/config/experiments/gpt2_baselines.yaml, or, overnight, the one that gpt2_rates.yaml chose on other seeds.
"""

import math

from lowmem.analysis.stats import estimate, paired
from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import lost, mean, over, ratio, smallest
from lowmem.reporting.numbers.premises import behind, leads_at
from lowmem.reporting.numbers.rate_grids import RateGrid, choice, lead, tuned
from lowmem.reporting.panels.losses import by_rate, faint, loss_curves, mean_of, tokens_label
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, by_axis, unfinished, where
from lowmem.reporting.values import Value, estimated, missing, text

EXHIBIT = {
    "id": "adam_mini_fig8",
    "paper": "adam_mini",
    "label": "Figure 8",
    "order": 80,
    "kind": "figure",
    "title": "GPT-2 against memory-lean baselines, trajectories, sensitivity",
    "experiments": ["gpt2_baselines", "gpt2_decay"],
    "published": "adam_mini.figure8",
}

BASELINES = ("adafactor", "adafactor_zhai", "came", "sm3")  # of the camera-ready panel
METHODS = ("adamw", "adam_mini", *BASELINES)
TWIN = "adamw_twin"
RATES = 3  # of each optimizer in panel d: its best one, twice and four times that


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: lead.<baseline>, lead.least, closer.<baseline>, closer.least, spread.<optimizer>, spread.difference;
    same_rate.lead.least (all at AdamW's best rate); distance.floor (of AdamW from itself, see floor); premises:
    adamw.behind.largest, distance.adam_mini (from AdamW, in AdamW's own movement)."""
    tried = tuned(of(runs, "gpt2_baselines"))
    methods = {name: one for name, one in tried.items() if name in METHODS}
    seeds = scale.seeds(run for one in methods.values() for run in one.best)
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "a: validation loss of each method at its best rate, mean over seeds, thin lines the seeds. b: distance of the "
        "weights from those of AdamW at equal seed, as a share of how far AdamW has moved from its first evaluation on; "
        "above 1 no method is near AdamW. Dotted: AdamW against itself from first weights a relative 1e-6 apart, below which "
        "distances say nothing. Thin lines everywhere: the seeds. "
        "c: final loss by learning rate. d: by weight decay.",
        columns=[
            "method",
            "best rate",
            "rates run",
            "final loss (nat)",
            "lead of Adam-mini (nat)",
            "distance from AdamW",
        ],
        rows=[],
        deviations=[f"{choice(methods.values())}; {seeds}. The paper runs all methods at 6e-4, one seed."]
        if tier != "paper"
        else [f"Mean over {seeds}; the paper shows one run per curve."],
    )
    if tier in ("laptop", "smoke"):
        shown.deviations.append("Output layer untied: tied, a GPT-2 this small spends its few steps on a plateau.")
    shown.deviations.append("Distances are estimated from sketches of the weights, to some percent.")
    publish(shown, published)
    gaps = {name: distances(one, methods["adamw"]) for name, one in methods.items() if name != "adamw"}
    for name, one in methods.items():
        if name in BASELINES:
            shown.values[f"lead.{name}"] = lead(one, methods["adam_mini"])
            shown.values[f"closer.{name}"] = closer(gaps[name], gaps["adam_mini"])
        far = text(end(gaps[name]), digits=2) if name in gaps else ""
        ahead = text(shown.values[f"lead.{name}"], True) if name in BASELINES else ""
        loss = text(one.gone or mean(one.best))
        shown.rows.append([display.name(name), one.rate, one.rates_tried, loss, ahead, far])
    gaps[TWIN] = floor(tried.get(TWIN), methods["adamw"])
    shown.values["distance.floor"] = end(gaps[TWIN])
    shown.rows.append([display.name(TWIN), methods["adamw"].rate, "", "", "", text(end(gaps[TWIN]), digits=2)])
    for key in ("lead", "closer"):
        found = [shown.values[f"{key}.{name}"] for name in BASELINES if f"{key}.{name}" in shown.values]
        shown.values[f"{key}.least"] = smallest(found)
    baselines = [methods[name] for name in BASELINES if name in methods]
    shown.values["adamw.behind.largest"] = behind(methods.get("adamw"), baselines)
    shown.values["same_rate.lead.least"] = leads_at(methods["adamw"].lr, methods["adam_mini"], baselines)
    shown.values["distance.adam_mini"] = end(gaps["adam_mini"])
    settings = sensitivity(runs, methods)
    spread(shown, settings)
    shown.figure = draw(methods, gaps, of(runs, "gpt2_decay"))
    return shown


def of(runs: Runs, experiment: str) -> list[Run]:
    return [run for run in runs if run.experiment == experiment]


# -- b: distances ----------------------------------------------------------------------------------------------------


def distances(method: RateGrid, adamw: RateGrid) -> dict:
    """{seed: [(tokens, distance / movement of AdamW)]}, or an entry that says why not.

    Distance: between the weights of both methods, each at its best rate. Movement: of AdamW since its first evaluation
    after the start, so the first point has none and is left out.
    """
    gone = method.gone or adamw.gone
    if gone:
        return gone
    found, theirs = {}, {run.seed: run for run in adamw.best}
    for run in method.best:
        ours, base = sketches(run), sketches(theirs[run.seed]) if run.seed in theirs else {}
        shared = sorted(ours.keys() & base.keys())
        if len(shared) < 2:
            return missing("not run: no sketches of the weights")
        moved = {at: math.dist(base[at], base[shared[0]]) for at in shared[1:]}
        found[run.seed] = [(at, math.dist(ours[at], base[at]) / moved[at]) for at in shared[1:] if moved[at] > 0]
    return found


def floor(twin: RateGrid | None, adamw: RateGrid) -> dict:
    """As distances(), of AdamW from itself at its best rate: the twin's first weights are a relative 1e-6 beside AdamW's."""
    if twin is None or adamw.gone:
        return adamw.gone or missing("not run: not planned in this tier")
    runs = twin.rates.get(adamw.lr, [])
    return distances(RateGrid(TWIN, {adamw.lr: runs}), adamw)


def sketches(run: Run) -> dict[int, list[float]]:
    return {row["tokens"]: row["sketch"] for row in run.curve() if row.get("sketch")}


def end(gaps: dict) -> Value:
    """The last distance, mean over seeds."""
    return (
        gaps
        if "value" in gaps
        else estimated(estimate([curve[-1][1] for curve in gaps.values()]), "of AdamW's movement")
    )


def closer(baseline: dict, subject: dict) -> Value:
    """Distance of a baseline over that of Adam-mini at the end: geometric mean over seeds; above 1 Adam-mini is closer."""
    for gaps in (baseline, subject):
        if "value" in gaps:
            return gaps
    theirs, ours = ({seed: curve[-1][1] for seed, curve in gaps.items()} for gaps in (baseline, subject))
    return ratio(theirs, ours)


# -- c and d: sensitivity --------------------------------------------------------------------------------------------


def sensitivity(runs: Runs, methods: dict[str, RateGrid]) -> dict[str, list[list[Run]]]:
    """{optimizer: runs by setting}: its best rate, twice and four times that, and the settings of gpt2_decay.

    Each from its own best rate on: a smaller one has not finished its descent when a short run ends, so that its loss says how
    far it got and nothing about how sensitive the method is. Without such runs an optimizer has no settings.
    """
    found = {}
    for optimizer in ("adamw", "adam_mini"):
        others = by_axis(where(of(runs, "gpt2_decay"), optimizer=optimizer), "setting")
        best = methods[optimizer].lr or math.nan
        rates = [runs for lr, runs in methods[optimizer].rates.items() if 0.99 * best <= lr <= 4.01 * best]
        found[optimizer] = [*rates, *others.values()] if len(rates) >= RATES else []
    return found


def spread(shown: ExhibitResult, settings: dict[str, list[list[Run]]]) -> None:
    """Largest minus smallest final loss over the settings, by seed; a diverged setting leaves no spread."""
    by_seed, gone = {}, None
    for optimizer, groups in settings.items():
        runs = [run for group in groups for run in group]
        reason = unfinished(runs) or (None if runs else f"not run: fewer than {RATES} rates from its best one on")
        if reason:
            side = {"adam_mini": "subject", "adamw": "baseline"}[optimizer]
            gone = gone or missing(reason, side if any(map(lost, runs)) else None)
            shown.values[f"spread.{optimizer}"] = missing(reason)
            continue
        seeds = {run.seed for run in runs}
        losses = {s: [run.final("val_loss") for run in runs if run.seed == s] for s in sorted(seeds)}
        by_seed[optimizer] = {seed: max(found) - min(found) for seed, found in losses.items()}
        entry = shown.values[f"spread.{optimizer}"] = estimated(estimate(list(by_seed[optimizer].values())))
        label = f"spread over {len(groups)} settings, {display.name(optimizer)}"
        shown.rows.append([label, "", "", text(entry), "", ""])
    if not gone:
        ours, theirs = by_seed["adam_mini"], by_seed["adamw"]
        gone = over(paired(ours, theirs))
    shown.values["spread.difference"] = gone


# -- picture ---------------------------------------------------------------------------------------------------------


def publish(shown: ExhibitResult, published: dict) -> None:
    for optimizer in ("AdamW", "Adam-mini", "Adafactor", "SM3", "LAMB"):
        cell = printed(published, "v1_panel_end_loss_by_eye_25B", optimizer=optimizer)
        shown.published += published_entry(f"{optimizer}, validation loss at 25 B tokens, first version, by eye", cell)
    shown.published += published_entry("rate of all methods", printed(published, "lr_all_methods"))


def draw(methods: dict[str, RateGrid], gaps: dict, decay: list[Run]):
    """Panels a to d: loss curves, distances of trajectories, final loss by rate, by weight decay."""
    drawn, panels = plots.figure([["a", "a", "b", "b"], ["c", "c", "d", "d"]], width=9.6, height=6.6)
    loss_curves(panels["a"], {name: one.best for name, one in methods.items() if not one.gone}, start=0.3)
    panels["a"].set_title("a  Best rate of each method")
    draw_distances(panels["b"], gaps, scale.per(decay))
    by_rate(panels["c"], methods)
    panels["c"].set_title("c  Rates run here")
    draw_decay(panels["d"], {o: methods[o] for o in ("adamw", "adam_mini")}, decay)
    return drawn


def draw_distances(axes, gaps: dict, unit: str) -> None:
    labels = []
    for name, by_seed in gaps.items():
        if "value" not in by_seed:
            look = plots.look(name) | ({"linestyle": (0, (1, 2))} if name == TWIN else {})
            for curve in by_seed.values():
                axes.plot(*zip(*curve, strict=True), **faint(look["color"]))
            x, y = mean_of(list(by_seed.values()))
            axes.plot(x, y, marker=".", **look)
            labels.append((x[-1], y[-1], display.name(name), look["color"]))
    if not labels:
        plots.empty(axes, "not run: no record")
        return
    axes.xaxis.set_major_formatter(tokens_label)
    axes.set(xlabel=f"training {unit}s", ylabel="distance / movement of AdamW")
    axes.set_ylim(0)
    axes.set_title("b  Distance from AdamW's weights")
    plots.end_labels(axes, labels)


def draw_decay(axes, methods: dict[str, RateGrid], decay: list[Run]) -> None:
    """Final loss by weight decay at one rate; the decay of the grid's own runs is one of the points."""
    labels = []
    for name, one in methods.items():
        found: dict[float, list[Run]] = {}
        lr = next((run.config["optimizer"]["lr"] for run in decay), None)
        for run in [*decay, *one.rates.get(lr, [])]:
            settings = run.config["optimizer"]
            if settings["name"] == name and settings["lr"] == lr:
                found.setdefault(settings["weight_decay"], []).append(run)
        means = sorted((wd, mean(runs)["value"]) for wd, runs in found.items() if mean(runs)["value"] is not None)
        if means:
            places = list(range(len(means)))
            for seed in sorted({run.seed for runs in found.values() for run in runs}):
                losses = [next(run.final("val_loss") for run in found[wd] if run.seed == seed) for wd, _ in means]
                axes.plot(places, losses, **faint(plots.look(name)["color"]))
            axes.plot(places, [loss for _, loss in means], marker=".", **plots.look(name))
            axes.set_xticks(places, [f"{wd:g}" for wd, _ in means])
            labels.append((places[-1], means[-1][1], display.name(name), plots.look(name)["color"]))
    if not labels:
        plots.empty(axes, "not run: no record")
        return
    axes.set(xlabel="weight decay", ylabel=scale.loss(decay, "final validation loss"))
    axes.set_title(f"d  Weight decay at rate {lr:g}")
    plots.end_labels(axes, labels)
