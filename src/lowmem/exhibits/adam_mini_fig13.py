"""Two versions of Adafactor against Adam-mini: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig13",
    "paper": "adam_mini",
    "label": "Figure 13",
    "order": 130,
    "kind": "table",
    "title": "Two versions of Adafactor against Adam-mini",
    "experiments": ["llama_variants"],
    "published": "adam_mini.figure13",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
