"""One searched rate on left-out blocks: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig6",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 60,
    "kind": "table",
    "title": "One searched rate on left-out blocks",
    "experiments": ["leave_x_out"],
    "published": "adam_mini.figure_leave_x_out",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
