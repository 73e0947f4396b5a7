"""Points of a grid: their names, their coordinates, and which rates they have."""

from pathlib import Path

from lowmem.pipeline import experiments, grids

ROOT = Path(__file__).parents[2]
AXES = {
    "size": {"small": None},
    "method": {"lora_5e.4": {"at": {"method": "lora", "point": "5e.4"}, "train": {"steps": 2}}},
}


def test_a_point_knows_its_values_and_what_one_of_them_stands_for():
    [point] = grids.points(AXES, None, [])
    assert point.variant == "small-lora_5e.4"
    assert point.axes == {"size": "small", "method": "lora", "point": "5e.4"}
    assert point.overlays == ({}, {"train": {"steps": 2}})  # `at` decides no result and stays outside the configuration
    assert "at" in AXES["method"]["lora_5e.4"]


def test_rates_are_a_last_axis_and_those_of_the_first_pattern_that_fits():
    axes = {"optimizer": {"adamw": None, "lion": None, "sgd": None}}
    found = list(grids.points(axes, {"lion": [1e-4], "ad*": [1e-3, 3e-3]}, ["*-3e.3"]))
    assert [point.variant for point in found] == ["adamw-1e.3", "lion-1e.4"]  # sgd has no rates, 3e-3 is left out
    assert found[0].axes == {"optimizer": "adamw", "lr": 0.001}
    assert found[0].overlays[-1] == {"optimizer": {"lr": 0.001}}


def test_without_axes_there_is_one_point():
    assert [(point.variant, point.axes) for point in grids.points({}, None, [])] == [("only", {})]


def test_every_run_of_every_tier_has_a_place_of_its_own():
    """Two variants at one place could not be told apart by an exhibit."""
    for tier in experiments.tier_names(ROOT):
        for name in experiments.experiment_names(ROOT, tier):
            runs = experiments.runs(ROOT, name, tier)
            places = {tuple(run["axes"].items()) for run in runs}
            assert len(places) == len({run["variant"] for run in runs}), (tier, name)
