"""Sizes and lengths of the language models that exhibits compare, and the two readings of a rate."""

import re
import shutil

import pytest
from synthetic import ROOT, checkout
from synthetic_losses import write

from lowmem import kept_files
from lowmem.models import gpt2, llama
from lowmem.pipeline import experiments, rates
from lowmem.reporting import exhibit
from lowmem.reporting.numbers import losses


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path)


def values(root, id, tier="laptop"):
    return exhibit.render(root, id, tier)[1].values


# -- sizes -------------------------------------------------------------------------------------------------------------

FACTS = {
    ("gpt2_sizes", "125m"): 124_373_760,
    ("gpt2_sizes", "330m"): 354_599_936,
    ("gpt2_sizes", "770m"): 773_582_080,
    ("gpt2_sizes", "1.5b"): 1_556_840_000,
    ("llama_scaling", "39m"): 38_738_304,
    ("llama_scaling", "67m"): 66_857_472,
    ("llama_scaling", "102m"): 101_924_480,
    ("llama_scaling", "162m"): 162_423_552,
    ("llama_scaling", "271m"): 271_090_688,
    ("llama_scaling", "1b"): 1_055_991_808,
    ("llama_large", "7b"): 6_738_415_616,
    ("llama_large", "8b"): 8_030_261_248,
    ("llama_large", "13b"): 13_015_864_320,
    ("llama_variants", "20m"): 19_794_176,
    ("llama_variants", "1b"): 1_055_991_808,
}


@pytest.mark.parametrize(("experiment", "size"), FACTS)
def test_paper_models_have_the_published_number_of_parameters(experiment, size):
    import torch

    run = next(r for r in experiments.runs(ROOT, experiment, "paper") if r["variant"].startswith(f"{size}-"))
    settings = dict(run["config"]["model"])
    with torch.device("meta"):
        model = {"gpt2": gpt2, "llama": llama}[settings.pop("name")].build(**settings)
    assert sum(p.numel() for p in model.parameters()) == FACTS[experiment, size]
    assert losses.parameters(run["config"]["model"]) == FACTS[experiment, size]


def test_scaling_runs_have_the_published_tokens():
    tokens = {"39m": 1.02e9, "67m": 1.76e9, "102m": 2.67e9, "162m": 4.25e9, "271m": 7.10e9, "1b": 26.21e9}
    for run in experiments.runs(ROOT, "llama_scaling", "paper"):
        train = run["config"]["train"]
        made = train["steps"] * train["batch_size"] * train["seq_len"]
        assert made == pytest.approx(tokens[run["variant"].split("-")[0]], rel=0.006)


@pytest.mark.parametrize("tier", ["laptop", "workstation"])
def test_small_scaling_runs_keep_the_tokens_per_parameter(tier):
    for run in experiments.runs(ROOT, "llama_scaling", tier):
        train = run["config"]["train"]
        ratio = train["steps"] * train["batch_size"] * train["seq_len"] / losses.parameters(run["config"]["model"])
        assert 19.5 < ratio < 27.5


@pytest.mark.parametrize(
    "experiment", ["gpt2_sizes", "llama_scaling", "llama_large", "gpt2_baselines", "llama_variants"]
)
@pytest.mark.parametrize("tier", ["laptop", "workstation", "paper"])
def test_every_deciding_tier_runs_three_seeds(experiment, tier):
    found = {}
    for run in experiments.runs(ROOT, experiment, tier):
        found.setdefault(run["variant"], []).append(run["seed"])
    assert all(len(seeds) >= 3 for seeds in found.values())


def test_names_of_small_models_are_their_sizes():
    for experiment in ("gpt2_sizes", "llama_scaling", "llama_variants"):
        for run in experiments.runs(ROOT, experiment, "laptop"):
            size = run["variant"].split("-")[0]
            assert re.fullmatch(r"\d+k", size)
            assert abs(losses.parameters(run["config"]["model"]) / 1000 - int(size[:-1])) < 0.51


# -- two readings: AdamW's best rate for both, or for each its own -----------------------------------------------------


def choose(root, rate_of):
    """Keep rates for every group of llama_rates, as if its runs had been made."""
    sizes = ("32k", "0.1m", "0.3m")
    groups = {f"{s}-{o}": {"lr": lr, "reason": None, "grid": []} for s in sizes for o, lr in rate_of.items()}
    path = rates.place(root, "overnight")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept_files.write_json(path, {"rule": rates.RULE, "experiments": {"llama_rates": groups}})


def write_readings(root, own):
    """Records of both experiments: 0.05 nat behind at AdamW's rate, `own` at Adam-mini's."""
    offset = lambda run: {"adamw": 0.0, "adam_mini": 0.05}.get(run["variant"].split("-")[-1], own)  # noqa: E731
    for experiment in ("llama_scaling", "llama_long"):
        write(root, experiment, "overnight", offset)


def test_each_at_its_own_best_rate_is_a_second_reading(root):
    choose(root, {"adamw": 6.0e-3, "adam_mini": 1.2e-2})
    write_readings(root, -0.02)
    table = values(root, "adam_mini_table4", "overnight")
    assert table["gap.worst"]["value"] == pytest.approx(0.05, abs=0.001)
    assert table["own_rate.gap.worst"]["value"] == pytest.approx(-0.02, abs=0.001)
    assert table["own_rate.gap.worst.percent"]["value"] < 0 < table["gap.worst.percent"]["value"]
    slope = values(root, "adam_mini_fig9", "overnight")["own_rate.slope.difference"]
    assert slope["value"] is None and "2 of the 3 sizes that a law needs" in slope["reason"]
    long = values(root, "adam_mini_fig11", "overnight")
    assert long["own_rate.gap.late"]["n"] == 8 and long["own_rate.gap.late"]["value"] < 0 < long["gap.late"]["value"]


def test_where_both_have_the_same_best_rate_one_set_of_runs_is_both_readings(root):
    choose(root, {"adamw": 6.0e-3, "adam_mini": 6.0e-3})
    write_readings(root, -0.02)
    assert not [r for r in experiments.runs(root, "llama_scaling", "overnight") if "own" in r["variant"]]
    table = values(root, "adam_mini_table4", "overnight")
    assert table["own_rate.gap.worst"] == table["gap.worst"]
    assert table["gap.worst"]["value"] == pytest.approx(0.05, abs=0.001)


def test_a_missing_run_at_its_own_rate_leaves_that_reading_open(root):
    choose(root, {"adamw": 6.0e-3, "adam_mini": 1.2e-2})
    write_readings(root, -0.02)
    shutil.rmtree(root / "results/overnight/llama_scaling/0.1m-adam_mini_own/seed3")
    table = values(root, "adam_mini_table4", "overnight")
    assert table["own_rate.gap.worst"]["value"] is None and "seed3" in table["own_rate.gap.worst"]["reason"]
    assert table["gap.worst"]["value"] is not None
