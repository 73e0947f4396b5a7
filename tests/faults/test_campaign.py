"""A short fault campaign: 8 kills and half of the other faults. `campaign.py --kills 50` is the long one."""

import campaign
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_every_fault_is_survived(tmp_path, capsys):
    rows = campaign.campaign(tmp_path, count=8, seed=0, chosen=campaign.SHORT)
    with capsys.disabled():
        print("\n" + campaign.table(rows))
    assert len(rows) == 8 + len(campaign.SHORT)
    assert [(fault, problem) for fault, problem in rows if problem] == []
