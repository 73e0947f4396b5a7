"""Value as one block, statistics of a block, embedding blocks: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig16",
    "paper": "adam_mini",
    "label": "Appendix C",
    "order": 160,
    "kind": "table",
    "title": "Value as one block, statistics of a block, embedding blocks",
    "experiments": ["llama_variants"],
    "published": "adam_mini.figure_value_whole",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
