"""Ours: which tensors carry Adam-mini's early deficit? AdamW's second moment for one kind of tensor at a time."""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.losses import difference, mean
from lowmem.reporting.panels.losses import side_by_side
from lowmem.reporting.runs import Runs, by_axis, unfinished
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "extra_gap_location",
    "paper": "extra",
    "label": "Extra",
    "order": 32,
    "kind": "figure",
    "title": "Where Adam-mini's early deficit lives",
    "experiments": [],
    "also": {"overnight": ["gap_location"]},
    "archived": ["overnight/gap_location"],
    "published": None,
}

NAMES = {
    "none": "Adam-mini",
    "tables": "exact in embedding and output",
    "query_key": "exact in query and key",
    "value": "exact in value",
    "projection": "exact in attention projection",
    "mlp": "exact in MLP",
    "value_whole": "value as one block",
    "beta2_0": "beta2 = 0",
    "beta2_0.999": "beta2 = 0.999",
}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gap.<exact> (minus AdamW), closed.<exact> (Adam-mini minus it: above 0 it is ahead)."""
    groups = by_axis(list(runs) or runs.archived, "exact")
    adamw, adam_mini = groups.get("all", []), groups.get("none", [])
    shown = ExhibitResult(
        caption="A Llama of 42 thousand parameters after 813 steps (0.8 million bytes of Shakespeare) at rate 6e-3: loss on "
        "the whole held-out text minus that of AdamW, paired by seed, where AdamW's second moment (one per weight) is kept "
        "for one kind of tensor and the blocks of the paper for the rest. Bars: 95 % over seeds.",
        columns=[
            "variant",
            "loss (nat per byte)",
            "minus AdamW",
            "closed by it (Adam-mini minus the variant)",
            "seeds",
        ],
        rows=[["AdamW", text(mean(adamw)), "", "", len(adamw)]],
        deviations=["In nobody's paper. What was expected stood in the experiment's file before these runs."],
    )
    for name, label in NAMES.items():
        own = groups.get(name, [])
        gap, closed = difference(own, adamw), difference(adam_mini, own)
        shown.values |= {f"gap.{name}": gap, f"closed.{name}": closed}
        cells = [text(mean(own)), text(gap, signed=True), "" if name == "none" else text(closed, signed=True)]
        if unfinished(own):  # the reason once
            cells = [cells[0], "", ""]
        shown.rows.append([label, *cells, len(own)])
    shown.figure = draw(shown.values)
    return shown


def draw(values: dict):
    """A row for each kind of tensor: the gap to AdamW with its interval."""
    drawn, panels = plots.figure([["gap"]], width=6.8, height=3.4)
    colours = {"none": plots.look("adam_mini")["color"]}
    rows = [(label, values[f"gap.{name}"], colours.get(name, plots.SERIES[0])) for name, label in NAMES.items()]
    side_by_side(panels["gap"], rows, "loss minus AdamW's (nat per byte)")
    return drawn
