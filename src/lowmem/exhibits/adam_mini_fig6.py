"""Leave-x-out: Adam on all weights but one, two or three blocks, which move by one searched rate (Figure 6 in our count).

A left-out block moves by rate * m_hat, the same rate for all its weights. The paper shows that a searched rate matches or
beats Adam; whether the rate that Adam-mini takes, from mean(v), does so too is what its reviewers asked and is shown beside.
"""

import math

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import difference, largest, lost, mean, window
from lowmem.reporting.numbers.pairs import MARGIN
from lowmem.reporting.panels.losses import side_by_side
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.rate_choice import TUNING
from lowmem.reporting.runs import Run, Runs, by_axis, unfinished, where
from lowmem.reporting.values import missing, text

EXHIBIT = {
    "id": "adam_mini_fig6",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 60,
    "kind": "figure",
    "topic": "theory",
    "title": "One searched rate on left-out blocks",
    "experiments": ["leave_x_out"],
    "published": "adam_mini.figure_leave_x_out",
}

NAMES = {"1_query": "query, layer 1", "1_up": "MLP up, layer 2", "1_out": "attention output, layer 3"}
NAMES |= {"2": "two: query, MLP", "3": "all three"}
COLOURS = {"rate": "#8a6fb3", "mean": plots.COLOURS["adam_mini"]}
MEASURE = window(0.9, 1.0)  # training loss of the last tenth, as the paper shows training loss


def per_cent(run: Run) -> float | None:
    """100 times its logarithm: differences are per cent of the loss."""
    loss = MEASURE(run)
    return None if loss is None else 100 * math.log(loss)


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gap.<set>, gap.worst (best searched rate minus Adam), mean.<set>, mean.worst (mean(v) minus searched);
    all four also in per cent of the loss: gap.percent.<set> and so on."""
    judging = [run for run in runs if run.seed < TUNING]
    adam = where(judging, left_out="adam")
    shown = ExhibitResult(
        caption=scale.about(runs)
        + "Training loss over the last tenth of the steps, minus that of Adam at equal seed, mean over seeds with 95 % "
        "intervals: for each rate of the grid, for the best of them (a ring), and for Adam-mini's rate from mean(v). "
        f"Dotted: the margin, {MARGIN} % of Adam's loss.",
        columns=["left out", "rate", "training loss (nat)", "minus Adam (nat)", "minus best searched (nat)"],
        rows=[["nothing (Adam)", "per weight", text(mean(adam, MEASURE), digits=4), "", ""]],
        deviations=[
            "Model, data, blocks and rates of the published figure are unknown; ours are a 4-layer Llama and three tensors.",
            "Two or three left-out blocks share one rate, which is stricter than a rate each.",
        ],
    )
    shown.published = published_entry("outcome", printed(published, "outcome")) + published_entry(
        "layers", printed(published, "depth")
    )
    results = {}
    for name in NAMES:
        rates = by_axis(where(judging, left_out=name), "rate")
        by_mean = rates.pop("mean", [])
        if rates:  # smaller tiers leave out fewer sets
            tuning = by_axis((run for run in where(runs, left_out=name) if run.seed >= TUNING), "rate")
            best = best_rate({lr: tuning[lr] for lr in rates} if rates.keys() <= tuning.keys() else rates)
            results[name] = add_rows(shown, name, rates, best, by_mean, adam)
    for key in ("gap", "mean", "gap.percent", "mean.percent"):
        shown.values[f"{key}.worst"] = largest(shown.values[f"{key}.{name}"] for name in results)
    level = mean(adam, MEASURE)["value"]
    shown.figure = draw(results, MARGIN / 100 * level if level else 0.0)
    return shown


def best_rate(rates: dict[float, list[Run]]) -> float | None:
    """The rate with the lowest mean loss; a rate at which a run diverged is out; None while a run is missing."""
    if any(run.status != "done" and not lost(run) for runs in rates.values() for run in runs):
        return None
    scores = {rate: mean(runs, MEASURE)["value"] for rate, runs in rates.items()}
    scores = {rate: score for rate, score in scores.items() if score is not None}
    return min(scores, key=scores.get) if scores else None


def add_rows(
    shown: ExhibitResult, name: str, rates: dict, best: float | None, by_mean: list[Run], adam: list[Run]
) -> dict:
    """Rows of one set of blocks; {"rates": {rate: entry}, "best": rate or None, "mean": entry}, entries minus Adam."""
    gaps = {rate: difference(runs, adam, MEASURE) for rate, runs in sorted(rates.items())}
    for rate, entry in gaps.items():
        chosen = " (best)" if rate == best else ""
        loss = text(mean(rates[rate], MEASURE), digits=4)
        shown.rows.append([NAMES[name], f"{rate:g}{chosen}", loss, text(entry, True), ""])
    runs = [run for group in rates.values() for run in group]
    reason = unfinished(runs) or "not run: no record"
    shown.values[f"gap.{name}"] = gaps[best] if best else missing(reason, "subject" if any(map(lost, runs)) else None)
    against = difference(by_mean, rates[best], MEASURE) if best else missing(reason)
    shown.values[f"mean.{name}"] = against
    shown.values[f"gap.percent.{name}"] = (
        difference(rates[best], adam, per_cent, "%") if best else shown.values[f"gap.{name}"]
    )
    shown.values[f"mean.percent.{name}"] = difference(by_mean, rates[best], per_cent, "%") if best else against
    entry = difference(by_mean, adam, MEASURE)
    cells = [text(mean(by_mean, MEASURE), digits=4), text(entry, True), text(against, True)]
    shown.rows.append([NAMES[name], "lr / √mean(v)", *cells])
    return {"rates": gaps, "best": best, "mean": entry}


def draw(results: dict[str, dict], margin: float):
    """A panel for each number of blocks left out: losses beyond Adam's."""
    drawn, panels = plots.figure([list(results) or ["none"]], width=11.2, height=2.9, sharex=True)
    for name, found in results.items():
        rows = [(f"rate {rate:g}", entry, COLOURS["rate"]) for rate, entry in found["rates"].items()]
        rows.append(("lr / √mean(v)", found["mean"], COLOURS["mean"]))
        axes = panels[name]
        side_by_side(axes, rows, "loss − Adam's (nat)")
        if found["best"]:
            place = list(found["rates"]).index(found["best"])
            axes.plot(
                found["rates"][found["best"]]["value"],
                place,
                "o",
                markersize=9,
                fillstyle="none",
                color=COLOURS["rate"],
            )
        if name != next(iter(results)):
            axes.set_yticklabels([])
        axes.axvline(margin, color=plots.INK, linewidth=1.0, linestyle=(0, (1, 2)))
        axes.set_title(NAMES[name], fontsize=9)
    return drawn
