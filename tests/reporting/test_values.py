"""What an exhibit may write for the claims: a number, its interval, or why there is none."""

import pytest

from lowmem.analysis.stats import estimate
from lowmem.reporting.values import as_estimate, check, estimated, exact, missing, value_or_reason

MEAN = estimate([1.0, 2.0, 4.0])


def test_an_estimate_comes_back_from_its_value():
    assert as_estimate(estimated(MEAN, "nat")) == MEAN
    assert estimated(MEAN, "nat", {3: 1.0})["by_seed"] == {"3": 1.0}


@pytest.mark.parametrize(
    "found",
    [
        exact(3),
        exact(0.0, "GB"),
        estimated(MEAN),
        estimated(estimate([1.0])),  # one run has no interval
        missing("not run: no record"),
        missing("diverged", "subject"),
        {**estimated(MEAN), "parts": [estimated(MEAN), estimated(MEAN)], "pooled": estimated(MEAN)},
    ],
)
def test_what_the_constructors_make_may_be_written(found):
    assert check("a", found) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"value": 1.0, "lo": 0.5, "high": 2.0}, "value a: unknown key 'lo'"),
        ({"value": None}, "neither a number nor a reason"),
        ({"unit": "nat"}, "neither a number nor a reason"),
        (missing("diverged", "Subject"), "failed is 'Subject', not one of subject, baseline"),
        ({**exact(1.0), "failed": "subject"}, "a number and a reason"),
        ({"value": 1.0, "low": 0.5}, "an interval with one end"),
        ({**exact(1.0), "parts": [{"value": 1.0, "hi": 2}]}, r"value a \(a part\): unknown key 'hi'"),
    ],
)
def test_an_entry_that_no_claim_could_read_is_refused(found, words):
    with pytest.raises(ValueError, match=words):
        check("a", found)


def test_a_reason_takes_the_place_of_the_number():
    assert value_or_reason(2.0, "GB", None) == {"value": 2.0, "unit": "GB"}
    assert value_or_reason(None, "GB", "out of memory") == {"value": None, "reason": "out of memory"}
