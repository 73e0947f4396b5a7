"""A published CPU result: character-level tinyshakespeare: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "extra_char_shakespeare",
    "paper": "extra",
    "label": "Extra",
    "order": 30,
    "kind": "table",
    "title": "A published CPU result: character-level tinyshakespeare",
    "experiments": ["char_shakespeare"],
    "published": None,
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
