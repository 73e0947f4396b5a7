"""Headline: Llama2-7B: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig1",
    "paper": "adam_mini",
    "label": "Figure 1",
    "order": 11,
    "kind": "table",
    "title": "Headline: Llama2-7B",
    "experiments": ["llama_large"],
    "published": "adam_mini.figure1",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
