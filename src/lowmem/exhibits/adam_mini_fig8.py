"""GPT-2 against memory-lean baselines, trajectories, sensitivity: final losses by run, for now without the figure."""

from lowmem import curves
from lowmem.exhibit import Runs, Shown

EXHIBIT = {
    "id": "adam_mini_fig8",
    "paper": "adam_mini",
    "label": "Figure 8",
    "order": 80,
    "kind": "table",
    "title": "GPT-2 against memory-lean baselines, trajectories, sensitivity",
    "experiments": ["gpt2_baselines", "gpt2_decay"],
    "published": "adam_mini.figure8",
}


def render(runs: Runs, published: dict, tier: str) -> Shown:
    """Rows by variant and seed."""
    return curves.listed(runs)
