import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem.analysis import stats

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(("df", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_t_quantiles_agree_with_the_printed_table(df, quantile):
    assert stats.t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-4)


def test_t_quantile_refuses_what_it_cannot_bracket():
    with pytest.raises(ValueError, match="p must lie"):
        stats.t_quantile(1.0, 3)


def test_three_values_get_the_t_interval():
    e = stats.estimate([1.0, 2.0, 3.0])
    assert (e.method, e.n, e.value) == ("t", 3, 2.0)
    assert e.high - e.value == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_one_value_has_no_interval():
    assert stats.estimate([1.5]) == stats.Estimate(1.5, None, None, 1, "single")


@pytest.mark.parametrize(("part", "count", "low", "high"), [(0.0, 10, 0.0, 0.2775), (0.5, 100, 0.4038, 0.5962)])
def test_a_share_gets_the_interval_of_wilson(part, count, low, high):
    assert stats.share(part, count) == pytest.approx((low, high), abs=1e-4)  # printed in textbooks


def test_many_values_get_the_bootstrap_and_it_is_the_same_every_time():
    values = np.random.default_rng(3).normal(size=40)
    first = stats.estimate(values)
    assert first.method == "bootstrap"
    assert first == stats.estimate(values)
    assert first != stats.estimate(values, seed=1)


def test_bootstrap_interval_of_the_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = stats.bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_no_global_random_state_is_read_or_changed():
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()
    stats.estimate(list(range(20)))
    assert (np.random.get_state()[1] == before[0]).all()
    assert random.getstate() == before[1]


@given(st.lists(numbers, min_size=2, max_size=30))
def test_interval_holds_the_mean(values):
    e = stats.estimate(values)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert e.low - slack <= e.value <= e.high + slack


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_nothing_and_non_finite_values_are_refused(bad):
    with pytest.raises(ValueError, match="estimate needs"):
        stats.estimate(bad)


def test_differences_pair_equal_seeds_and_drop_the_rest():
    assert stats.paired({0: 3.0, 1: 5.0, 7: 1.0}, {1: 4.0, 0: 1.0, 9: 2.0}) == {0: 2.0, 1: 1.0}


def test_paired_interval_is_free_of_what_the_pairs_share():
    shared, noise = {k: 10.0 * k for k in range(5)}, {k: 0.01 * (-1) ** k for k in range(5)}
    gaps = stats.paired({k: shared[k] + noise[k] for k in shared}, shared)
    e = stats.estimate(list(gaps.values()))
    assert e.high - e.low < 0.05


def test_worst_of_several_is_below_a_bound_only_if_each_is():
    a, b = stats.Estimate(0.0, -1.0, 1.0, 5, "t"), stats.Estimate(0.5, 0.4, 0.6, 3, "t")
    assert stats.worst([a, b]) == stats.Estimate(0.5, 0.4, 1.0, 3, "t")


def test_worst_has_no_interval_where_one_is_missing():
    a, b = stats.Estimate(0.0, -1.0, 1.0, 5, "t"), stats.Estimate(0.5, None, None, 1, "single")
    assert stats.worst([a, b]).high is None
    assert stats.worst([]) is None
