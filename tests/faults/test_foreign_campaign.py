"""Foreign files of every kind, poisoned in every way: each ends well or in one line, and nothing outside is touched.

LOWMEM_COUNT=1 tries all of them and writes the counts; without, a part of them.
"""

import os
import random
import shutil

import edge
import foreign
import poison
import pytest
from campaign_counts import WHOLE, hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PART = 40  # cases of a group


@pytest.mark.parametrize("dataset", foreign.GIVEN)
def test_what_is_poisoned_is_good_before(dataset, tmp_path):
    """Else another file would be refused, and the poisoned one never looked at."""
    edge.warm()
    endings = [work() for work in foreign.prepared(tmp_path, dataset, foreign.GIVEN[dataset])]
    assert [ending.code for ending in endings] == [0, 0], endings[-1].line


@pytest.mark.parametrize("group", foreign.GROUPS)
def test_no_foreign_file_runs_code_or_ends_in_more_than_a_line(group, tmp_path):
    counts, findings, place = {"cases": 0, "read": 0, "in one line": 0}, [], tmp_path / "case"
    cases = list(foreign.GROUPS[group]())
    if not WHOLE and len(cases) > PART:
        cases = random.Random(28).sample(cases, PART)
    foreign.warm()
    for name, build in cases:
        place.mkdir()
        works = build(place)
        before, code = edge.content(place, but=place / "root"), 0
        for work in works:
            ending = work()
            code = code or ending.code
            if ending.finding:
                findings.append((name, ending.finding, ending.line[:300]))
        if edge.content(place, but=place / "root") != before or os.path.lexists(poison.OUTSIDE):
            findings.append((name, "something outside of the checkout was touched, or code was run"))
            poison.OUTSIDE.unlink(missing_ok=True)
        counts["cases"] += 1
        counts["in one line" if code else "read"] += 1
        shutil.rmtree(place)
    assert findings == [], "\n".join(map(str, findings))
    assert counts["in one line"] > 0
    hold(
        f"foreign: {group}",
        foreign.SAID[group],
        counts,
        "read or one line; no code ran, nothing outside was touched",
        part=not WHOLE,
    )
