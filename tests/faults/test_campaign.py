"""A short fault campaign: 8 kills and half of the other faults. `campaign.py --kills 50` is the long one."""

import campaign
import pytest
from campaign_counts import hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_every_fault_of_two_rounds_is_survived(tmp_path, capsys):
    rows = campaign.campaign(tmp_path, campaign.SHORT, seed=0)
    with capsys.disabled():
        print("\n" + campaign.table(rows))
    assert [name for name, _ in rows] == [name for names in campaign.SHORT for name in names]
    assert [(fault, problem) for fault, problem in rows if problem] == []
    kills = sum(name in campaign.KILLS for name, _ in rows)
    what = "a whole pipeline killed at random moments, its disk filled, its files broken, two of them in one folder"
    counts = {"SIGKILLs to all processes": kills, "other faults": len(rows) - kills}
    hold("pipeline", what, counts, "the next call ends with tables, verdicts and records equal to the undisturbed ones")


def test_the_long_campaign_tries_every_fault_and_as_many_kills_as_asked():
    rounds = campaign.long(52)
    tried = [name for names in rounds for name in names]
    assert sum(name in campaign.KILLS for name in tried) == 52
    assert set(tried) == set(campaign.FAULTS)
