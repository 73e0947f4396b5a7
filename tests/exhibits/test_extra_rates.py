"""Rates by rule: which methods share a panel."""

from lowmem.exhibits import extra_rates
from lowmem.reporting.numbers.rate_grids import RateGrid


def test_variants_of_adam_mini_stand_beside_it_in_panels_of_their_own():
    grids = {name: RateGrid(name, {}) for name in ("adamw", "adam_mini", "max", "l1", "value_whole")}
    assert {kind: [*part] for kind, part in extra_rates.kinds(grids).items()} == {
        "optimizers": ["adamw", "adam_mini"],
        "blocks of Adam-mini": ["adam_mini", "value_whole"],
        "statistics of a block": ["adam_mini", "max", "l1"],
    }
    assert [*extra_rates.kinds({"adamw": grids["adamw"]})] == [""]
