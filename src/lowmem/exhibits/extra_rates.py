"""Ours: final loss by learning rate on tuning seeds, and the rates that the rule chose for the runs that judge."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import Runs, Shown
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean as mean_of_runs
from lowmem.reporting.numbers.losses import models, parameters, text, tuned, used
from lowmem.reporting.panels.losses import by_rate
from lowmem.reporting.values import exact

EXHIBIT = {
    "id": "extra_rates",
    "paper": "extra",
    "label": "Extra",
    "order": 33,
    "kind": "figure",
    "title": "Rates by rule: equal grids for every method",
    "experiments": [],
    "also": {"overnight": ["llama_rates", "gpt2_rates"]},
    "archived": ["overnight/llama_rates", "overnight/gpt2_rates"],
    "published": None,
}

COLUMNS = 3  # panels side by side
NAMES = {"llama": "Llama", "gpt2": "GPT-2"}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Values: best.<size>.<optimizer>: the rate with the lowest mean loss; loss.<the same>: that loss."""
    found = list(runs) or runs.archived
    grids = {size: tuned(found, size) for size in models(found)}
    shown = Shown(
        caption=scale.about(found)
        + "Loss on the whole held-out text after 20 (Llama) or 40 (GPT-2) characters of English prose per parameter, with each "
        "of the rates, a factor 2 apart, as many for every method; mean over "
        "tuning seeds (100 and up), which judge no claim. Large mark: the best rate.",
        columns=["model", "parameters", "optimizer", "rate", "loss (nat per character)", "best", "seeds"],
        rows=[],
        deviations=["The papers name no search for rates; they give both optimizers one rate for each size."],
        runs_used=used(found),
    )
    for size, methods in grids.items():
        for name, method in methods.items():
            shown.values[f"best.{size}.{name}"] = exact(method.lr, "learning rate") if method.lr else method.gone
            shown.values[f"loss.{size}.{name}"] = mean_of_runs(method.best) if method.lr else method.gone
            for lr, group in method.rates.items():
                best = "" if lr != method.lr else method.rate.replace(f"{lr:g}", "best")
                count = parameters(group[0].config["model"])
                cells = [display.name(name), f"{lr:g}", text(mean_of_runs(group)), best, len(group)]
                shown.rows.append([size, f"{count:,}" if count else "", *cells])
    shown.figure = draw(grids)
    return shown


def draw(grids: dict):
    sizes = [*grids, *["."] * (-len(grids) % COLUMNS)]
    rows = [sizes[k : k + COLUMNS] for k in range(0, len(sizes), COLUMNS)]
    drawn, panels = plots.figure(rows, width=3.9 * COLUMNS, height=3.4 * len(rows))
    for size, methods in grids.items():
        by_rate(panels[size], methods, names="ends" if len(methods) == 2 else "beneath")
        run = next(iter(next(iter(methods.values())).rates.values()))[0]
        model = run.config["model"]
        panels[size].set_title(f"{NAMES[model['name']]}, {scale.short(parameters(model))} parameters")
        panels[size].set_ylabel("final loss (nat per character)")
    return drawn
