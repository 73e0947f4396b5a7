"""docs/robustness.md says what the campaigns counted, and nothing else about them."""

import importlib.util

from campaign_counts import recorded
from checkout import ROOT


def load():
    spec = importlib.util.spec_from_file_location("robustness", ROOT / "docs/robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_command_writes():
    robustness = load()
    committed = robustness.PAGE.read_text(encoding="utf-8")
    assert committed == robustness.page(committed, recorded())
    assert robustness.BEGIN in committed and robustness.table(recorded()) in committed


def test_a_count_that_changes_changes_the_page():
    robustness, campaigns = load(), recorded()
    name, one = next(iter(campaigns.items()))
    changed = {**campaigns, name: {**one, "counts": {"cases": 123456}}}
    assert "123,456 cases" in robustness.page(robustness.PAGE.read_text(encoding="utf-8"), changed)


def test_every_row_names_a_campaign_that_is_there():
    for name, one in recorded().items():
        text = (ROOT / one["test"]).read_text(encoding="utf-8")
        assert "hold(" in text, name
        assert sum(one["counts"].values()) > 0
