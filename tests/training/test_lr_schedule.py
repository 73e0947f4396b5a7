import pytest

from lowmem.training.lr_schedule import lr_at


def test_warm_up_rises_in_equal_steps_to_the_peak():
    schedule = {"name": "cosine", "warmup_steps": 4}
    assert [lr_at(k, 8.0, schedule, 100) for k in (1, 2, 3, 4)] == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("name, halfway", [("cosine", 0.55), ("linear", 0.55)])
def test_decay_passes_its_middle_and_ends_at_the_floor(name, halfway):
    schedule = {"name": name, "warmup_steps": 10, "min_lr": 0.1}
    assert lr_at(55, 1.0, schedule, 100) == pytest.approx(halfway)
    assert lr_at(100, 1.0, schedule, 100) == pytest.approx(0.1)


def test_decay_may_be_longer_than_training_and_stays_at_the_floor_after_its_end():
    longer = {"name": "cosine", "warmup_steps": 0, "steps": 200, "min_lr": 0.1}
    assert lr_at(100, 1.0, longer, 100) == pytest.approx(0.55)
    shorter = {"name": "linear", "steps": 50, "min_lr": 0.1}
    assert lr_at(80, 1.0, shorter, 100) == pytest.approx(0.1)


def test_without_a_schedule_the_rate_is_constant():
    assert {lr_at(k, 0.3, {}, 10) for k in range(1, 11)} == {0.3}


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_rate_never_exceeds_the_peak_nor_falls_below_the_floor(name):
    schedule = {"name": name, "warmup_steps": 7, "min_lr": 0.05}
    rates = [lr_at(k, 1.0, schedule, 60) for k in range(8, 80)]
    assert max(rates) <= 1.0 and min(rates) >= 0.05
    assert rates == sorted(rates, reverse=True)
