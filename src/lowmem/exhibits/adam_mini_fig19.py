"""GCN and GAT on a citation graph (Figure 19 in our count; the paper's number is unknown).

The third optimizer is ours: one block for each output neuron of a layer; the vectors of graph attention stay one block each.
"""

from lowmem.analysis import stats
from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.quarters import ACCURACY, BEHIND, COLUMNS, TEST, add_rows, at, behind, data_of, of
from lowmem.reporting.panels.losses import side_by_side
from lowmem.reporting.panels.quarters import curves
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs

EXHIBIT = {
    "id": "adam_mini_fig19",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 190,
    "kind": "figure",
    "title": "GCN and GAT",
    "experiments": ["graphs"],
    "also": {"overnight": ["graphs_rates"]},
    "published": "adam_mini.figure_gnn",
}

MODELS = {"gcn": "GCN", "gat": "GAT"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <model>.behind (validation), <model>.behind_test, for gcn and gat."""
    tuning = [run for run in runs if run.experiment == "graphs_rates"]
    judged = [run for run in runs if run.experiment == "graphs"]
    found = {run.final("isolated_nodes") for run in judged if run.status == "done"}
    lonely = ", ".join(map(str, sorted(found))) or "not known"
    shown = ExhibitResult(
        caption=scale.counted(judged, "epochs")
        + f"Data: {data_of(judged)}; nodes without an edge: {lonely} (they keep their "
        "own features). Validation accuracy by epoch, mean over seeds with its 95 % interval; right: test accuracy at the "
        f"end, how far Adam-mini is behind, thin marks the seeds. {BEHIND}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Rates and sizes of the published runs are unknown.",
            f"{scale.seeds(judged)}; the paper shows one run.".capitalize(),
        ],
    )
    if "wordnet_graph" in data_of(judged):
        shown.deviations.append("A graph of WordNet's nouns, our own construction, in place of ogbn-arxiv.")
    if tier in ("laptop", "smoke"):
        shown.deviations.append("One rate for all optimizers, chosen for AdamW.")
    if tuning:
        shown.deviations.append(f"Each optimizer at a rate chosen on other seeds, {chosen(judged, tuning)}.")
    shown.published = published_entry("numbers", printed(published, "numbers"))
    groups = {name: of(judged, name) for name in MODELS}
    bars, seeds = [], []
    for name, label in MODELS.items():
        add_rows(shown, label, groups[name], ACCURACY)
        add_rows(shown, label, groups[name], TEST)
        shown.values[f"{name}.behind"] = behind(groups[name], ACCURACY)
        for optimizer in ("adam_mini", "adam_mini_neuron"):
            entry = behind(groups[name], TEST, optimizer)
            shown.values[f"{name}.behind_test" if optimizer == "adam_mini" else f"{name}.neuron_behind_test"] = entry
            bars.append((f"{label}, {'per tensor' if optimizer == 'adam_mini' else 'by neuron'}", entry, optimizer))
            seeds.append(by_seed(groups[name], optimizer))
    drawn, panels = plots.figure([["gcn", "gat", "test"]], height=3.6, width_ratios=[1.1, 1.1, 1])
    for name, letter in zip(MODELS, "ab", strict=True):
        curves(panels[name], groups[name], ACCURACY, "epochs", "epochs", f"{letter}  {MODELS[name]}", band=True)
    side_by_side(
        panels["test"],
        [(label, entry, plots.look(optimizer)["color"]) for label, entry, optimizer in bars],
        "points behind AdamW",
        seeds,
    )
    panels["test"].set_title("c  Test accuracy")
    shown.figure = drawn
    return shown


def by_seed(groups: dict[str, list[Run]], optimizer: str) -> list[float]:
    """Points of test accuracy behind AdamW at the end, for each seed that both have."""
    found = [{run.seed: at(run, TEST, 1) for run in groups.get(name, [])} for name in (optimizer, "adamw")]
    mine, base = ({seed: TEST.gap(share) for seed, share in one.items() if share is not None} for one in found)
    return list(stats.paired(mine, base).values())


def chosen(judged: list[Run], tuning: list[Run]) -> str:
    """'of 5 from 0.025 to 0.4: 0.1 (GCN, AdamW), ...'."""
    grid = sorted({run.config["optimizer"]["lr"] for run in tuning})
    rates = {(run.axes["model"], run.axes["optimizer"]): run.config["optimizer"]["lr"] for run in judged}
    told = [f"{lr:g} ({MODELS[model]}, {display.name(name)})" for (model, name), lr in rates.items()]
    return f"of {len(grid)} from {grid[0]:g} to {grid[-1]:g}: {', '.join(told)}"
