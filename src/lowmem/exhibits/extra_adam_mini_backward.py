"""Adam-mini inside backward: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "extra_adam_mini_backward",
    "paper": "extra",
    "label": "Extra",
    "order": 10,
    "kind": "table",
    "title": "Adam-mini inside backward",
    "experiments": ["backward_update"],
    "published": None,
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
