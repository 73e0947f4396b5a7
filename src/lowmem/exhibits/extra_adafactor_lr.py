"""Adafactor with and without a learning rate that is used: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "extra_adafactor_lr",
    "paper": "extra",
    "label": "Extra",
    "order": 20,
    "kind": "table",
    "title": "Adafactor with and without a learning rate that is used",
    "experiments": ["llama_variants"],
    "published": None,
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
