"""Scaling laws of Llama: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig9",
    "paper": "adam_mini",
    "label": "Figure 9",
    "order": 90,
    "kind": "table",
    "title": "Scaling laws of Llama",
    "experiments": ["llama_scaling"],
    "published": "adam_mini.figure9",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
