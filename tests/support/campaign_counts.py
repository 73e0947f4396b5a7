"""Counts of campaigns that break something on purpose, one record for all: data/campaigns/counts.json.

LOWMEM_COUNT=1 with a campaign's test tries all of it and writes what it found; without, campaigns that take minutes try a
part, and the others must find what the record says. `python docs/robustness.py` then writes the page.
"""

import json
import os
from pathlib import Path

COUNTS = Path(__file__).parents[2] / "data/campaigns/counts.json"
WHOLE = os.environ.get("LOWMEM_COUNT") == "1"


def recorded() -> dict[str, dict]:
    return json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.is_file() else {}


def hold(name: str, tried: str, counts: dict[str, int], held: str, part: bool = False) -> None:
    """Compare what a campaign found with the record, or write it there.

    name: where the row stands among the others. tried, held: what the row says. counts: {what is counted, plural: how often}.
    part: not all of the campaign was tried, so that there is nothing to compare.
    """
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[0]
    found = {"tried": tried, "counts": counts, "held": held, "test": test}
    if WHOLE:
        entries = dict(sorted({**recorded(), name: found}.items()))
        COUNTS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert part or recorded().get(name) == found, f"{name}: run again with LOWMEM_COUNT=1 and look at the difference"
