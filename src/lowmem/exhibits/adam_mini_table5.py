"""The table of non-LLM tasks of Adam-mini (Table 5 in our count): four models, a metric at each quarter of training.

The last question is ours: does the principle of Hessian blocks help where the paper's rule does not apply it? So each
model also runs with one block for each filter or output neuron.
"""

from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.losses import largest
from lowmem.reporting.numbers.quarters import ACCURACY, BEHIND, COLUMNS, LOSS, add_rows, behind, data_of, of
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs

EXHIBIT = {
    "id": "adam_mini_table5",
    "paper": "adam_mini",
    "label": "Table 5 or 6",
    "order": 15,
    "kind": "table",
    "title": "Vision, diffusion and graphs at each quarter of training",
    "experiments": ["resnet", "ddpm", "graphs"],
    "published": "adam_mini.table_nonllm",
}

MODELS = {
    "ddpm": ("DDPM", LOSS, "DDPM {} train loss"),
    "resnet18": ("ResNet-18", ACCURACY, "ResNet18 {} val acc"),
    "gat": ("GAT", ACCURACY, "GAT {} val acc"),
    "gcn": ("GCN", ACCURACY, "GCN {} val acc"),
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <model>.behind, <model>.neuron_behind (by neuron against per tensor), behind.points (worst of the accuracies),
    neuron.points (worst of the accuracies: is one block per neuron behind one per tensor?)."""
    shown = ExhibitResult(
        caption=scale.counted((run for run in runs if run.config["task"] != "nodes"), "training pictures")
        + scale.counted((run for run in runs if run.config["task"] == "nodes"), "epochs")
        + f"Data: {data_of(runs)}. Metric at 25, 50, 75 and 100 % of training, mean over seeds. Adam-mini: one block per "
        "tensor, the paper's rule for models without attention; by neuron: one block per filter or output neuron. "
        f"{BEHIND} Rows marked paper are recalled, not confirmed.",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The rows by neuron are ours.",
            "Attention inside the DDPM is one block per tensor as well, except by neuron.",
            "The loss of the DDPM is taken on held-out pictures with fixed noise.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Models, data and length are those of this tier, not ImageNet, CelebA and ogbn-arxiv.")
    for name, (label, metric, row) in MODELS.items():
        groups = of(runs, name)
        add_rows(shown, label, groups, metric)
        shown.values[f"{name}.behind"] = behind(groups, metric)
        shown.values[f"{name}.neuron_behind"] = behind(groups, metric, "adam_mini_neuron", "adam_mini")
        publish(shown, published, label, metric, row)
    accuracies = [name for name, (_, metric, _) in MODELS.items() if metric is ACCURACY]
    shown.values["behind.points"] = largest(shown.values[f"{name}.behind"] for name in accuracies)
    shown.values["neuron.points"] = largest(shown.values[f"{name}.neuron_behind"] for name in accuracies)
    return shown


def publish(shown: ExhibitResult, published: dict, label: str, metric, row: str) -> None:
    """The paper's row of each optimizer, as far as it is known."""
    for optimizer in ("AdamW", "Adam-mini"):
        found = printed(published, "metric at 25, 50, 75, 100 % of training", row=row.format(optimizer))
        shown.published += published_entry(row.format(optimizer), found)
        if found:
            cells = [f"{metric.scale * value:.{metric.digits}f}" for value in found["value"]]
            shown.rows.append([f"{label} (paper)", optimizer, row.split("{} ")[1], *cells, "", 1])
