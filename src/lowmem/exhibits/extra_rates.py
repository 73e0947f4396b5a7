"""Ours: final loss by learning rate on tuning seeds, and the rates that the rule chose for the runs that judge."""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import mean as mean_of_runs
from lowmem.reporting.numbers.losses import parameters
from lowmem.reporting.numbers.rate_grids import RateGrid, tuned
from lowmem.reporting.panels.losses import by_rate
from lowmem.reporting.runs import Run, Runs, by_axis
from lowmem.reporting.values import exact, text

EXHIBIT = {
    "id": "extra_rates",
    "paper": "extra",
    "label": "Extra",
    "order": 33,
    "kind": "figure",
    "title": "Rates by rule: equal grids for every method",
    "experiments": [],
    "also": {"overnight": ["llama_rates", "gpt2_rates"]},
    "archived": [
        "overnight/llama_rates",
        "overnight/gpt2_rates",
        "overnight/llama_variants_rates",
        "laptop/gpt2_rates",
        "laptop/llama_variants_rates",
    ],
    "published": None,
}

NAMES = {"llama": "Llama", "gpt2": "GPT-2"}
VARIANTS = {  # of Adam-mini; each kind in a panel of its own
    "blocks of Adam-mini": ("default_partition", "value_whole", "embedding_whole", "embedding_adam"),
    "statistics of a block": ("max", "min", "l1", "l2"),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: best.<size>.<optimizer>: the rate with the lowest mean loss; loss.<the same>: that loss."""
    own = {run.id for run in runs}
    found = [*runs, *(run for run in runs.archived if run.id not in own)]
    grids = by_size(found)
    shown = ExhibitResult(
        caption=scale.about([run for run in found if run.status == "done"] or found)
        + "Loss on the whole held-out text with each of the rates, a factor 2 apart, as many for every method; mean over "
        "tuning seeds (100 and up), which judge no claim. Large mark: the best rate. Tier overnight: English prose, 20 "
        "characters per parameter for Llama (32k once more with all partitions and statistics of Adam-mini) and 40 for GPT-2 "
        "(35k). Tier laptop: 8 bytes per parameter (GPT-2 43k, Llama 14k with the same partitions and statistics).",
        columns=["model", "parameters", "optimizer", "rate", "loss (nat per character or byte)", "best", "seeds"],
        rows=[],
        deviations=["The papers name no search for rates; they give both optimizers one rate for each size."],
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


def by_size(runs: list[Run]) -> dict[str, dict[str, RateGrid]]:
    """{size: {method: its rates}}; the variants' runs of a size that optimizers were tuned at too stand under their own."""
    found = {}
    for size, group in by_axis(runs, "size").items():
        variants = [run for run in group if run.experiment == "llama_variants_rates"]
        others = [run for run in group if run not in variants]
        found[size] = tuned(others or variants)
        if others and variants:
            found[f"{size} (variants)"] = tuned(variants)
    return found


def draw(grids: dict):
    """Two small panels to a row; a size with many methods has a row of its own, and one more for each kind of variants."""
    made = {size: methods for size, methods in grids.items() if any(one.scores for one in methods.values())} or grids
    few = [size for size, methods in made.items() if len(methods) == 2]
    shown = {(size, ""): made[size] for size in few}
    shown |= {(size, kind): part for size in made if size not in few for kind, part in kinds(made[size]).items()}
    rows = [[*few[k : k + 2], *["."] * (k + 2 - len(few))] for k in range(0, len(few), 2)]
    rows = [[f"{name} " if name != "." else name for name in row] for row in rows]
    rows += [[f"{size} {kind}"] * 2 for size, kind in shown if size not in few]
    drawn, panels = plots.figure(rows, width=8.6, height=3.4 * len(rows))
    for (size, kind), methods in shown.items():
        axes = panels[f"{size} {kind}"]
        together = len({max(one.rates) for one in methods.values()}) == 1  # the lines end side by side
        by_rate(axes, methods, names="ends" if together else "points")
        run = next(iter(next(iter(methods.values())).rates.values()))[0]
        model = run.config["model"]
        title = f"{NAMES[model['name']]}, {scale.short(parameters(model))} parameters"
        axes.set_title(f"{title}: {kind}" if kind else title)
        axes.set_ylabel(scale.loss([run], "final loss"))
    return drawn


def kinds(methods: dict) -> dict[str, dict]:
    """{words: methods}: optimizers, and Adam-mini beside its variants of each kind; without variants one nameless kind."""
    variants = {name for names in VARIANTS.values() for name in names}
    found = {"optimizers": {name: one for name, one in methods.items() if name not in variants}}
    for words, names in VARIANTS.items():
        if own := [name for name in names if name in methods]:
            found[words] = {name: methods[name] for name in ("adam_mini", *own) if name in methods}
    return found if len(found) > 1 else {"": methods}
