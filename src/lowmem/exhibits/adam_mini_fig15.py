"""CAME, SM3, Lion, LAMB and AdaLomo against Adam-mini: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig15",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 150,
    "kind": "table",
    "title": "CAME, SM3, Lion, LAMB and AdaLomo against Adam-mini",
    "experiments": ["gpt2_baselines"],
    "published": "adam_mini.figure_other_baselines",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
