"""Llama sizes at a Chinchilla budget: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_table4",
    "paper": "adam_mini",
    "label": "Table 4",
    "order": 14,
    "kind": "table",
    "title": "Llama sizes at a Chinchilla budget",
    "experiments": ["llama_scaling"],
    "published": "adam_mini.table4",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
