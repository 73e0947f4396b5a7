"""Ours: a placebo for the partition. Do the Hessian's blocks train better than random blocks of the same sizes?"""

from lowmem.reporting import plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers.losses import difference, mean, smallest
from lowmem.reporting.panels.losses import side_by_side
from lowmem.reporting.runs import Runs, by_axis
from lowmem.reporting.values import text

EXHIBIT = {
    "id": "extra_partition_placebo",
    "paper": "extra",
    "label": "Extra",
    "order": 34,
    "kind": "figure",
    "title": "A placebo for the partition: random blocks of the same sizes",
    "experiments": [],
    "also": {"overnight": ["partition_placebo"]},
    "archived": ["overnight/partition_placebo"],
    "published": None,
}

NAMES = {
    "paper": "blocks of the paper",
    "random": "random inside layers",
    "random_tables": "random everywhere",
    "input": "by input neuron",
    "tensor": "one per tensor",
}
LENGTHS = ("s813", "s2440")


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: gap.<blocks>.<length> (minus AdamW), excess.<blocks>.<length> (minus the blocks of the paper), and
    excess.random.least, the smaller excess of both kinds of random blocks after the longer runs."""
    groups = by_axis(list(runs) or runs.archived, "blocks", "steps")
    shown = ExhibitResult(
        caption="A Llama of 42 thousand parameters, 0.8 and 2.5 million bytes of Shakespeare, rate 6e-3: loss on the whole "
        "held-out text of Adam-mini with other blocks than the paper's minus that with the paper's, paired by seed. Random: "
        "as many blocks of the same sizes, whose weights are drawn at random. Bars: 95 % over seeds.",
        columns=[
            "blocks",
            "steps",
            "loss (nat per byte)",
            "minus AdamW",
            "minus the paper's blocks",
            "seeds",
        ],
        rows=[],
        deviations=[
            "In nobody's paper. What would follow from which outcome stood in the experiment's file before these runs."
        ],
    )
    for length in LENGTHS:
        adamw, paper = groups.get(("adamw", length), []), groups.get(("paper", length), [])
        shown.rows.append(["AdamW", length[1:], text(mean(adamw)), "", "", len(adamw)])
        for name, label in NAMES.items():
            own = groups.get((name, length), [])
            gap, excess = difference(own, adamw), difference(own, paper)
            shown.values |= {f"gap.{name}.{length}": gap, f"excess.{name}.{length}": excess}
            cells = [text(mean(own)), text(gap, signed=True), "" if name == "paper" else text(excess, signed=True)]
            shown.rows.append([label, length[1:], *cells, len(own)])
    random = [shown.values[f"excess.{name}.{LENGTHS[-1]}"] for name in ("random", "random_tables")]
    shown.values["excess.random.least"] = smallest(random)
    shown.figure = draw(shown.values)
    return shown


def draw(values: dict):
    """A panel for each length: loss beyond that of the paper's blocks."""
    drawn, panels = plots.figure([list(LENGTHS)], width=9.0, height=2.9)
    for length in LENGTHS:
        rows = [
            (label, values[f"excess.{name}.{length}"], plots.SERIES[0])
            for name, label in NAMES.items()
            if name != "paper"
        ]
        side_by_side(panels[length], rows, "loss − that of the paper's blocks (nat/byte)")
        panels[length].set_title(f"After {int(length[1:]):,} steps")
    return drawn
