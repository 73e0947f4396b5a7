"""The longest Llama run: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig11",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 110,
    "kind": "table",
    "title": "The longest Llama run",
    "experiments": ["llama_scaling"],
    "published": "adam_mini.figure_llama1b",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
