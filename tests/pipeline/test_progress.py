"""What a line of progress says of sizes and times: few digits, no exponents."""

import pytest

from lowmem import progress


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "size unknown"),
        (0, "0 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_700, "1 MB"),
        (999_900_000, "1 GB"),
        (14_000_000_000, "14 GB"),
        (1_500_000_000_000, "1.5 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count, text):
    assert progress.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (9.96, "10 s"), (720, "12 min"), (12_600, "3.5 h"), (10**6, "12 days")]
)
def test_a_duration_has_two_digits_and_a_unit(seconds, text):
    assert progress.duration(seconds) == text
