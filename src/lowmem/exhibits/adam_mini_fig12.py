"""Llama3-8B and Llama2-13B: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig12",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 120,
    "kind": "table",
    "title": "Llama3-8B and Llama2-13B",
    "experiments": ["llama_large"],
    "published": "adam_mini.figure_llama8b_13b",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
