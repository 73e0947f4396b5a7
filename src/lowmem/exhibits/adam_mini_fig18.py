"""Figure 18 of Adam-mini: ResNet-18 and a DDPM, models without (much) attention, with one block for each tensor.

Beside the paper's blocks a third line: one block for each filter and output neuron, which is what the paper's theory of
Hessian blocks asks for and its rule for such models does not do.
"""

from collections.abc import Iterable

from lowmem.analysis.stats import estimate
from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.quarters import ACCURACY, BEHIND, COLUMNS, LOSS, add_rows, behind, data_of, of
from lowmem.reporting.panels.quarters import curves, sample_strip
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Run, Runs, where
from lowmem.reporting.values import estimated, missing

EXHIBIT = {
    "id": "adam_mini_fig18",
    "paper": "adam_mini",
    "label": "Figure 18",
    "order": 180,
    "kind": "figure",
    "title": "ResNet-18 and DDPM",
    "experiments": ["resnet", "ddpm"],
    "archived": ["workstation/resnet"],
    "published": "adam_mini.figure18",
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: resnet18.behind, ddpm.behind, full.accuracy (AdamW, full ResNet-18 on Fashion-MNIST)."""
    shown = ExhibitResult(
        caption=scale.counted(runs, "training pictures")
        + f"Data: {data_of(runs)}. Mean over seeds, thin lines the seeds. Samples: the same starting noise for all "
        f"optimizers. {BEHIND}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "The loss of the DDPM is that on held-out pictures with fixed noise, which is steadier than the training loss "
            "that the paper shows; weights are not averaged over time.",
            "Third line, not in the paper: one block for each filter and output neuron.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Models, data and length are those of this tier: see the run list.")
    for panel, what in (("ResNet-18 ImageNet", "accuracy"), ("DDPM", "training loss")):
        for optimizer in ("AdamW", "Adam-mini"):
            end = printed(published, "end_by_eye", panel=panel, optimizer=optimizer)
            shown.published += published_entry(f"{panel}, {optimizer}, {what} at the end, by eye", end)
    resnet, ddpm = of(runs, "resnet18"), of(runs, "ddpm")
    add_rows(shown, "ResNet-18", resnet, ACCURACY)
    add_rows(shown, "DDPM", ddpm, LOSS)
    shown.values = {"resnet18.behind": behind(resnet, ACCURACY), "ddpm.behind": behind(ddpm, LOSS)}
    add_full(shown, runs if tier == "workstation" else runs.archived, tier)
    shown.figure = draw(resnet, ddpm)
    return shown


def add_full(shown: ExhibitResult, runs: Iterable[Run], tier: str) -> None:
    """Accuracy of AdamW on the full ResNet-18: runs of the workstation tier, kept ones in the report of another tier."""
    done = [run for run in runs if run.status == "done" and run.experiment == "resnet"]
    for run in done if tier != "workstation" else ():
        label = f"ResNet-18, full width (workstation tier, seed {run.seed}, {run.record['device']['name']})"
        add_rows(shown, label, of([run], "resnet18"), ACCURACY)
    found = [100 * run.final("val_accuracy") for run in where(done, optimizer="adamw")]
    absent = missing("not run: no record of the workstation tier")
    shown.values["full.accuracy"] = estimated(estimate(found), "%") if found else absent


def draw(resnet: dict, ddpm: dict):
    """The training of two models, and images that the second one generates."""
    drawn, panels = plots.figure([["a", "b"], ["samples", "samples"]], height=6.4, height_ratios=[1.2, 1])
    curves(panels["a"], resnet, ACCURACY, "images", "training images", "a  ResNet-18")
    curves(panels["b"], ddpm, LOSS, "images", "training images", "b  DDPM, error of the predicted noise")
    sample_strip(panels["samples"], {display.name(optimizer): runs for optimizer, runs in ddpm.items()})
    panels["samples"].set_title("c  Samples of the DDPM", pad=20)
    return drawn
