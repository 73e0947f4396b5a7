"""Adafactor: throughput and sweeps: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig14",
    "paper": "adam_mini",
    "label": "Figure (number unknown)",
    "order": 140,
    "kind": "table",
    "title": "Adafactor: throughput and sweeps",
    "experiments": ["llama_variants", "adafactor_sweeps"],
    "published": "adam_mini.appendix_adafactor_sweeps",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
