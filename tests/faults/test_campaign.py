"""A short fault campaign: 8 kills and half of the other faults. `campaign.py --kills 50` is the long one."""

import campaign
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("names", campaign.SHORT, ids=["first", "second"])
def test_every_fault_of_a_round_is_survived(names, tmp_path, capsys):
    rows = campaign.campaign(tmp_path, [names], seed=0)
    with capsys.disabled():
        print("\n" + campaign.table(rows))
    assert [name for name, _ in rows] == list(names)
    assert [(fault, problem) for fault, problem in rows if problem] == []


def test_the_long_campaign_tries_every_fault_and_as_many_kills_as_asked():
    rounds = campaign.long(52)
    tried = [name for names in rounds for name in names]
    assert sum(name in campaign.KILLS for name in tried) == 52
    assert set(tried) == set(campaign.FAULTS)
