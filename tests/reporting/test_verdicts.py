"""How often verdicts are wrong, by simulation: what is true is set, runs are drawn, the verdict is taken."""

import numpy as np
import pytest

from lowmem.analysis import stats
from lowmem.reporting.numbers import losses
from lowmem.reporting.verdicts import verdict

BOUND = {"kind": "less", "target": 0, "margin": 0.02}
PUBLISHED = {"value": 0, "unit": "nat", "source": "readme-image", "confidence": "high"}
DRAWS = 2000
FEW = 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5  # a true rate of 5 % shows more than this once in 700 tries


def claim(**more):
    return {"rule": BOUND, "decides": ["overnight"], "published": PUBLISHED, **more}


def drawn(random, gaps, seeds=3, spread=0.01, shared=0.0):
    """The worst of several settings, each with its true gap; shared: part of the noise that all settings have in common."""
    common = random.normal(0, spread * shared**0.5, seeds)
    entries = []
    for gap in gaps:
        own = gap + common + random.normal(0, spread * (1 - shared) ** 0.5, seeds)
        entries.append(losses.over(dict(enumerate(own.tolist()))))
    return losses.largest(entries)


@pytest.mark.parametrize("sizes", [2, 5, 14])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_a_true_claim_about_many_sizes_is_contradicted_at_most_once_in_twenty(sizes, shared):
    """Hardest case: every true gap is on the bound. Uncorrected it fails 5 to 30 times in a hundred."""
    random = np.random.default_rng(sizes)
    found = [verdict(claim(), drawn(random, [0.02] * sizes, shared=shared), "overnight")[0] for _ in range(DRAWS)]
    assert found.count("contradicted") / DRAWS <= FEW
    assert found.count("reproduced") / DRAWS <= FEW


def test_a_false_claim_about_many_sizes_is_reproduced_at_most_once_in_twenty():
    """One of five true gaps is on the bound, the others are far inside."""
    random = np.random.default_rng(1)
    found = [verdict(claim(), drawn(random, [0.02, -1, -1, -1, -1]), "overnight")[0] for _ in range(DRAWS)]
    assert found.count("reproduced") / DRAWS <= FEW


def test_one_size_that_is_clearly_outside_contradicts():
    random = np.random.default_rng(2)
    found = [verdict(claim(), drawn(random, [0, 0, 0.2], seeds=5), "overnight")[0] for _ in range(200)]
    assert found.count("contradicted") == 200
    elsewhere = verdict(claim(), drawn(random, [0, 0, 0.2], seeds=5), "laptop")[0]
    assert elsewhere == "opposite_here"


def test_the_mean_over_sizes_is_covered_with_runs_that_they_share():
    random = np.random.default_rng(3)
    pooled = [drawn(random, [-0.01, 0.0, 0.04], shared=0.5)["pooled"] for _ in range(DRAWS)]
    missed = sum(not e["low"] <= 0.01 <= e["high"] for e in pooled)
    assert missed / DRAWS <= FEW


@pytest.mark.parametrize("must", ["hold", "not_fail"])
def test_a_gate_lets_a_false_premise_through_at_most_once_in_twenty(must):
    """hold: the premise is on its bound. not_fail: it is clearly false."""
    random = np.random.default_rng(4)
    gate = {"premise": "p", "value": "p", "rule": {"kind": "greater", "target": 0}, "must": must}
    true = 0.0 if must == "hold" else -0.05
    found = []
    for _ in range(DRAWS):
        premise = losses.over(dict(enumerate(random.normal(true, 0.01, 5).tolist())))
        found.append(verdict(claim(gate=gate), drawn(random, [0.0]), "overnight", premise)[0])
    assert 1 - found.count("not_testable") / DRAWS <= FEW


def test_the_sign_of_a_simulated_number_never_contradicts_or_confirms():
    random = np.random.default_rng(5)
    values = [{"value": float(x)} for x in random.normal(0, 1, 200)]
    for tier in ("laptop", "overnight", "workstation", "paper"):
        found = {verdict(claim(decides=[], simulated=True), value, tier)[0] for value in values}
        assert found == {"simulated_fits", "simulated_differs"}


@pytest.mark.parametrize(("seeds", "items"), [(2, 50), (3, 30), (3, 400), (10, 100)])
@pytest.mark.parametrize("scatter", [(1, 0, 0), (0, 1, 0), (1, 5, 2), (0.3, 5, 1), (1, 1, 1), (0.1, 0.1, 1)])
def test_an_interval_over_seeds_and_windows_misses_the_truth_at_most_once_in_twenty(seeds, items, scatter):
    """Scatter of the seeds' means, of the windows that all seeds share, and of the rest."""
    random = np.random.default_rng(seeds + items)
    by_seed, by_item, rest = scatter
    missed = 0
    for _ in range(DRAWS):
        losses = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_item, items)
        e = stats.two_way(losses + random.normal(0, rest, (seeds, items)))
        missed += not e.low <= 0 <= e.high
    assert missed / DRAWS <= FEW


def test_an_interval_over_seeds_alone_misses_what_their_common_windows_add():
    """Why the sample's error is in the interval: without it, it is wrong most of the time."""
    random, missed = np.random.default_rng(6), 0
    for _ in range(500):
        losses = random.normal(0, 0.3, (3, 1)) + random.normal(0, 5, 30)
        e = stats.estimate(losses.mean(axis=1))
        missed += not e.low <= 0 <= e.high
    assert missed / 500 > 0.3


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("sample", [0.0, 0.5, 1.0, 5.0])
def test_a_known_sampling_error_added_to_a_seed_interval_keeps_its_coverage(seeds, sample):
    random, missed = np.random.default_rng(seeds), 0
    for _ in range(DRAWS):
        e = stats.estimate(random.normal(0, 1, seeds) + random.normal(0, sample))
        e = stats.wider(e, sample)
        missed += not e.low <= 0 <= e.high
    assert missed / DRAWS <= FEW


@pytest.mark.parametrize("count", [3, 10, 20, 30])
def test_the_interval_of_few_values_covers_their_mean(count):
    random = np.random.default_rng(count)
    found = [stats.estimate(random.normal(0, 1, count)) for _ in range(DRAWS)]
    assert {e.method for e in found} == {"t"}
    assert sum(not e.low <= 0 <= e.high for e in found) / DRAWS <= FEW


def test_holm_finds_what_stands_out_and_stops_at_the_first_that_does_not():
    assert stats.holm([0.001, 0.02, 0.5]) == [True, False, False]
    assert stats.holm([0.02]) == [True]
    assert stats.holm([0.012, 0.02, 0.0001], level=0.05) == [True, True, True]


def test_runs_left_out_because_the_premise_fails_are_not_testable_and_others_are_not_run():
    gate = {"premise": "p", "value": "p", "rule": {"kind": "greater", "target": 0}, "must": "not_fail"}
    gone, refuted, open_ = {"value": None, "reason": "not run: no record"}, {"value": -0.1}, {"value": 0.1}
    for tier in ("laptop", "overnight"):
        assert verdict(claim(gate=gate), gone, tier, refuted)[0] == "not_testable"
        assert "-0.1" in verdict(claim(gate=gate), gone, tier, refuted)[1]
        for premise in (open_, gone, {"value": -0.1, "n": 1}):
            assert verdict(claim(gate=gate), gone, tier, premise) == ("not_run", "not run: no record")
    assert verdict(claim(gate=gate), gone, "smoke", refuted)[0] == "not_run"
    assert verdict(claim(), gone, "overnight")[0] == "not_run"


def test_a_demonstration_gives_no_verdict_whatever_its_number():
    for value in (-1.0, 0.0, 1.0):
        found, why = verdict(
            claim(demonstration=["laptop"]), losses.over({0: value, 1: value + 1e-3, 2: value}), "laptop"
        )
        assert found == "not_testable" and "a demonstration at tier laptop" in why
        assert (
            verdict(claim(demonstration=["laptop"]), losses.over({0: value, 1: value, 2: value}), "overnight")[0]
            != "not_testable"
        )


def test_a_time_taken_on_a_busy_machine_decides_nothing():
    quiet = losses.over({0: -1.0, 1: -1.01, 2: -1.02})
    assert verdict(claim(), quiet, "overnight")[0] == "reproduced"
    found, why = verdict(claim(), {**quiet, "busy": "Other programs competed"}, "overnight")
    assert found == "inconclusive" and "decides nothing" in why


@pytest.mark.parametrize(
    "reason, found",
    [
        ("diverged (at step 12): a/seed0", "inconclusive"),
        ("out of memory", "inconclusive"),
        ("AdamW: diverged (at step 12)", "inconclusive"),
        ("AdamW: not run: failed (it diverged)", "not_run"),
        ("every rate diverged: diverged: a/seed0", "inconclusive"),
        ("not run: failed (cannot read histories_diverged.npz)", "not_run"),
        ("not run: failed (x); diverged: a/seed0", "not_run"),
    ],
)
def test_what_a_failed_run_said_is_no_result(reason, found):
    assert verdict(claim(), {"value": None, "reason": reason}, "overnight")[0] == found
