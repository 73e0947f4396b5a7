"""The protocol of the overnight tier: tuning seeds apart from judging seeds, equal grids, warm-up, the whole held-out text."""

import itertools
import math

import pytest

from lowmem.pipeline import experiments, rates

PHASE, CLIPPING = "gap_phase", "block_clipping"  # ask what warm-up does, so they have others too
SWEEPS = "adafactor_sweeps"  # warm-up is one of the settings that it sweeps
BOTH = "leave_x_out"  # chooses among searched rates by its tuning seeds and judges by the others


def own(root, tasks=("pretrain",), tier="overnight"):
    """{experiment: its runs} of those that the tier sets itself and that train a language model."""
    found = {}
    for name in experiments.experiment_names(root, tier):
        if tier in (experiments.load_experiment(root, name).get("tiers") or {}):
            runs = experiments.runs(root, name, tier)
            if runs[0]["config"]["task"] in tasks:
                found[name] = runs
    return found


def test_there_are_tuning_and_judging_experiments(root):
    names = own(root)
    assert {"llama_rates", "gpt2_rates", PHASE} <= names.keys()


def test_seeds_from_100_tune_and_seeds_below_10_judge_never_both(root):
    for name, runs in own(root).items():
        seeds = {run["seed"] for run in runs}
        if name.endswith("_rates"):
            assert min(seeds) >= rates.TUNING, name
        else:
            judging = {seed for seed in seeds if seed < rates.TUNING}
            assert max(judging) < 10 and (judging == seeds or name == BOTH), name


@pytest.mark.parametrize("tier", ["laptop", "overnight"])
def test_every_method_gets_as_many_rates_a_factor_2_apart(root, tier):
    tuning = {
        name: runs for name, runs in own(root, ("pretrain", "superglue"), tier).items() if name.endswith("_rates")
    }
    assert "gpt2_rates" in tuning
    for name, runs in tuning.items():
        grids: dict[str, set] = {}
        for run in runs:
            grids.setdefault(run["variant"].rsplit("-", 1)[0], set()).add(run["config"]["optimizer"]["lr"])
        models = {group.rpartition("-")[0] for group in grids}
        for model in models:  # a model whose best rate was at an edge has more, for every method
            assert len({len(grid) for group, grid in grids.items() if group.rpartition("-")[0] == model}) == 1, name
        for grid in map(sorted, grids.values()):
            assert [b / a for a, b in itertools.pairwise(grid)] == pytest.approx([2] * (len(grid) - 1)), (name, grid)


def test_warm_up_is_the_larger_of_one_per_cent_and_50_steps(root):
    for name, runs in own(root).items():
        for run in runs:
            warmup, steps = run["config"]["schedule"]["warmup_steps"], run["config"]["train"]["steps"]
            swept = name == SWEEPS and "-warmup_" in run["variant"]
            if not (swept or (name in (PHASE, CLIPPING) and run["variant"].startswith(("short", "long")))):
                assert warmup == max(50, math.ceil(steps / 100)), run["id"]


def test_losses_are_those_of_1024_spread_windows_and_of_the_whole_held_out_text(root):
    for runs in own(root).values():
        for run in runs:
            assert run["config"]["train"]["eval_windows"] == 1024, run["id"]
            assert run["config"]["measure"]["held_out"] == "whole", run["id"]


def test_claims_rest_on_fp32_and_no_run_takes_more_than_an_hour(root):
    for runs in own(root).values():
        for run in runs:
            assert run["config"]["train"]["precision"] == "fp32", run["id"]
            assert run["resources"]["minutes"] <= 60 and run["resources"]["gpus"] == 0, run["id"]
