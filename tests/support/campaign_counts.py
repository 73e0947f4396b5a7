"""Counts of campaigns that break something on purpose, one record for all: data/campaigns/counts.json.

LOWMEM_COUNT=1 with the campaign's test writes what it found; without, it must find what the record says.
"""

import json
import os
from pathlib import Path

COUNTS = Path(__file__).parents[2] / "data/campaigns/counts.json"


def recorded() -> dict:
    return json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.is_file() else {}


def hold(name: str, found: dict[str, int], others: bool = False) -> None:
    """Compare the counts of one campaign with the record, or write them there. others: it has more, from other tests."""
    before = recorded().get(name, {})
    if os.environ.get("LOWMEM_COUNT") == "1":
        before = {**before, **found} if others else found
        COUNTS.write_text(json.dumps({**recorded(), name: before}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    known = {key: before.get(key) for key in found} if others else before
    assert known == found, f"{name}: run again with LOWMEM_COUNT=1 and look at the difference"


def row(name: str) -> str:
    """The counts of one campaign as docs/robustness.md says them."""
    return ", ".join(f"{key}: {count}" for key, count in recorded()[name].items())
