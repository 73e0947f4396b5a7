"""Modelled costs of GPU runs: what is modelled, what it scales with, and how it stands beside measured ones."""

import copy

import pytest
from synthetic import ROOT

from lowmem.files import read_json, write_json
from lowmem.memory import costs
from lowmem.pipeline import estimate, experiments, planning


@pytest.fixture(scope="module")
def run():
    found = next(r for r in experiments.runs(ROOT, "gpt2_sizes", "workstation") if "adam_mini" in r["variant"])
    small = {"name": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 512, "block_size": 1024}
    return {**found, "config": {**found["config"], "model": small}}


def changed(run: dict, **train) -> dict:
    other = copy.deepcopy(run)
    other["config"]["train"].update(train)
    return other


def test_modelled_seconds_are_proportional_to_steps(run):
    run = changed(run, eval_every=None)
    once, twice = (costs.seconds(changed(run, steps=n), "rtx-4090") for n in (100, 200))
    assert twice == pytest.approx(2 * once) and once > 0


def test_a_faster_gpu_takes_less_time(run):
    assert costs.seconds(run, "h100-80gb") < costs.seconds(run, "t4")


def test_what_the_model_knows_nothing_of_is_left_to_the_formula(run):
    assert costs.seconds({**run, "resources": {**run["resources"], "gpus": 0}}, "t4") is None
    other = {**run, "config": {**run["config"], "model": {"name": "mlp"}}}
    assert costs.seconds(other, "t4") is None
    measuring = {key: value for key, value in run["config"].items() if key != "train"}
    assert costs.seconds({**run, "config": measuring}, "t4") is None


def test_measured_and_modelled_costs_stand_side_by_side(tmp_path):
    (tmp_path / "data/published").mkdir(parents=True)
    write_json(tmp_path / estimate.COSTS, {"smoke/a/x": 5, "paper/a/x": {"seconds": 7.0, "gpu": "t4"}})
    assert estimate.costs(tmp_path) == {"smoke/a/x": 5}
    assert estimate.costs(tmp_path, modelled=True) == {"paper/a/x": 7.0}


@pytest.mark.parametrize("tier", ["workstation", "paper"])
def test_the_kept_costs_are_of_runs_that_there_are_on_the_tiers_own_gpu(tier):
    gpu = experiments.load_tier(ROOT, tier)["estimate"]["gpu"]
    kept = {key: value for key, value in read_json(ROOT / estimate.COSTS).items() if key.startswith(f"{tier}/")}
    jobs = planning.jobs(ROOT, tier, {}).values()
    known = {f"{tier}/{run['experiment']}/{run['variant']}": run for job in jobs for run in job["runs"]}
    assert len(kept) > 100 and not kept.keys() - known.keys()
    assert {value["gpu"] for value in kept.values()} == {gpu}
    cheapest = min(kept, key=lambda key: kept[key]["seconds"])  # the smallest model: a second or two to count again
    assert kept[cheapest]["seconds"] == pytest.approx(costs.seconds(known[cheapest], gpu), rel=0.01, abs=0.1)
