"""Exhibits on vision, diffusion and graphs: what they read out of records, and what missing and diverged runs do."""

import functools
import json
import re

import numpy as np
import pytest
import synthetic_vision
from synthetic import ROOT, checkout, record
from synthetic_vision import POINTS

from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import quarters
from lowmem.reporting.panels import quarters as quarter_plots
from lowmem.reporting.runs import load
from lowmem.tasks import diffuse
from lowmem.vision import image_batches

FIGURES = ("adam_mini_fig17", "adam_mini_fig18", "adam_mini_fig19")
TABLES = ("adam_mini_table5", "adam_mini_table7")
ALWAYS_MISSING = {"full.accuracy"}  # of the workstation tier alone
CLAIMS = {claim["id"]: claim for claim in claims.load(ROOT)}


@functools.cache
def runs_of(experiment, tier):
    """The planned runs, of which many tests look at the configuration."""
    return experiments.runs(ROOT, experiment, tier)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path)


@pytest.fixture
def full(everything):
    """full(id): an exhibit made from all records."""
    return everything[1].__getitem__


@pytest.mark.parametrize("id", FIGURES + TABLES)
def test_with_all_records_every_value_is_there_and_nothing_is_nan(full, id):
    shown = full(id)
    found = {name: value for name, value in shown.values.items() if name not in ALWAYS_MISSING}
    assert found and all(value["value"] is not None for value in found.values()), found
    assert not re.search(r"\bnan\b", json.dumps([shown.rows, shown.values]), re.IGNORECASE)
    assert shown.deviations


def test_gaps_are_paired_points_of_accuracy_and_per_cent_of_loss(full):
    behind = full("adam_mini_fig18").values
    for name in ("resnet18.behind", "ddpm.behind"):
        assert behind[name]["value"] == pytest.approx(POINTS["adam_mini"], abs=0.02) and behind[name]["n"] == 3
    assert [behind[name]["unit"] for name in ("resnet18.behind", "ddpm.behind")] == ["points", "%"]
    table = full("adam_mini_table5").values
    assert table["behind.points"]["value"] == pytest.approx(POINTS["adam_mini"], abs=0.02)
    expected = POINTS["adam_mini_neuron"] - POINTS["adam_mini"]
    assert table["neuron.points"]["value"] == pytest.approx(expected, abs=0.02)
    assert table["ddpm.neuron_behind"]["value"] == pytest.approx(expected, abs=0.02)
    assert full("adam_mini_fig19").values["gat.behind"]["n"] == 5


def test_the_table_shows_the_metric_at_each_quarter_beside_the_recalled_rows(full):
    rows = full("adam_mini_table5").rows
    [resnet] = [row for row in rows if row[:2] == ["ResNet-18", "AdamW"]]
    shown = [float(cell) for cell in resnet[3:7]]
    assert shown == pytest.approx([100 * (0.6 + 0.2 * part - 0.01) for part in synthetic_vision.STEPS], abs=0.011)
    [printed] = [row for row in rows if row[:2] == ["ResNet-18 (paper)", "Adam-mini"]]
    assert printed[3:7] == ["61.40", "65.01", "66.29", "66.67"]
    assert all(value["confidence"] == "low" for value in full("adam_mini_table5").published)


def test_own_distances_never_stand_under_the_published_names(full):
    shown = full("adam_mini_table7")
    fid, score = shown.columns.index("FID"), shown.columns.index("Inception score")
    for row in shown.rows:
        ours = "(paper)" not in row[0]
        assert (row[fid] == row[score] == "") is ours and bool(row[2]) is ours
    assert shown.values["dit.distance"]["value"] == pytest.approx(1 + POINTS["adam_mini"] / 100, rel=0.01)
    assert shown.values["dit.score"]["value"] == pytest.approx((5 - POINTS["adam_mini"]) / 5)


def test_pictures_without_classes_are_not_measured_and_it_says_why(root):
    for experiment in ("ddpm", "dit"):
        synthetic_vision.write(root, experiment, "paper")
    _, shown, _ = exhibit.render(root, "adam_mini_table7", "paper")
    assert (
        shown.values["ddpm.distance"]["value"] is None and "without classes" in shown.values["ddpm.distance"]["reason"]
    )
    [row] = [row for row in shown.rows if row[:2] == ["DDPM (ours)", "AdamW"]]
    assert "without classes" in row[2] and shown.values["dit.distance"]["value"] is not None


def test_the_metric_at_a_quarter_is_that_of_the_nearest_evaluation(root):
    synthetic_vision.write(root, "resnet")
    run = next(iter(load(root, ["resnet"], "laptop", {})))
    assert quarters.at(run, quarters.ACCURACY, 0.3) == quarters.at(run, quarters.ACCURACY, 0.25)
    assert quarters.at(run, quarters.ACCURACY, 1) == run.curve()[-1]["val_accuracy"]
    assert quarters.at(run, quarters.TEST, 0.0) == run.curve()[1]["test_accuracy"]  # the untrained network is left out


def test_evaluations_fall_on_the_quarters_of_every_experiment():
    for experiment in synthetic_vision.EXPERIMENTS:
        for tier in ("smoke", "laptop", "workstation", "paper"):
            for run in runs_of(experiment, tier):
                steps, every = (run["config"]["train"][key] for key in ("steps", "eval_every"))
                assert abs(steps / 4 - round(steps / 4 / every) * every) <= 0.01 * steps, (tier, run["id"])


def test_tasks_know_every_key_of_their_experiments():
    known = {"classify": image_batches.KEYS, "diffuse": diffuse.KEYS, "nodes": set()}
    for experiment in synthetic_vision.EXPERIMENTS:
        for tier in ("smoke", "laptop", "workstation", "paper"):
            for run in runs_of(experiment, tier):
                assert run["config"].get("measure", {}).keys() <= known[run["config"]["task"]], (tier, run["id"])


def test_optimizers_of_a_model_differ_in_nothing_but_their_blocks():
    for experiment in synthetic_vision.EXPERIMENTS:
        for tier in ("smoke", "laptop", "workstation", "paper"):
            shared = {}
            for run in runs_of(experiment, tier):
                optimizer = {k: v for k, v in run["config"]["optimizer"].items() if k not in ("name", "neurons")}
                config = {**run["config"], "optimizer": optimizer}
                assert shared.setdefault(run["variant"].split("-")[0], config) == config


def test_models_without_attention_have_the_papers_blocks_and_a_row_of_ours():
    for experiment in ("resnet", "ddpm", "graphs"):
        for run in runs_of(experiment, "paper"):
            asked = run["config"]["optimizer"].get("neurons")
            assert asked is {"adamw": None, "adam_mini": False, "adam_mini_neuron": True}[run["variant"].split("-")[1]]
    for experiment in ("vision_transformers", "dit"):
        assert all("neurons" not in run["config"]["optimizer"] for run in runs_of(experiment, "paper"))


@pytest.mark.parametrize("tier", ["laptop", "workstation", "paper"])
def test_graphs_run_five_seeds_and_the_others_three(tier):
    for experiment in synthetic_vision.EXPERIMENTS:
        seeds = {run["seed"] for run in runs_of(experiment, tier)}
        assert seeds == set(range(5 if experiment == "graphs" else 3))


def test_the_published_rates_are_those_of_the_paper_tier():
    rates = {
        ("resnet", "resnet18"): 5e-3,
        ("vision_transformers", "swin"): 5e-4,
        ("dit", "dit"): 1e-4,
        ("dit", "dcae"): 2e-4,
    }
    for (experiment, model), rate in rates.items():
        runs = [run for run in runs_of(experiment, "paper") if run["variant"].startswith(f"{model}-")]
        assert runs and {run["config"]["optimizer"]["lr"] for run in runs} == {rate}


# -- missing and diverged runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", FIGURES + TABLES)
def test_without_records_every_cell_says_why_and_no_claim_is_decided(root, id):
    shown = exhibit.make(root, id, "laptop")
    assert all(value["value"] is None and "not run" in value["reason"] for value in shown.values.values())
    mine = [claim for claim in CLAIMS.values() if claim["exhibit"] == id]
    assert mine and all(claims.verdict(claim, shown.values[claim["value"]], "laptop")[0] == "not_run" for claim in mine)


def test_a_diverged_run_is_shown_and_decides_by_its_side(root):
    synthetic_vision.write(root, "resnet")
    for run in experiments.runs(root, "resnet", "laptop"):
        if run["variant"] == "resnet18-adam_mini":
            lines = synthetic_vision.curve(run, 0)[:2]
            reason = "loss is not finite at step 70"
            record(root, run, {"val_loss": None, "step": 70}, lines, status="diverged", reason=reason)
    _, shown, _ = exhibit.render(root, "adam_mini_fig18", "laptop")
    assert shown.values["resnet18.behind"]["failed"] == "subject"
    assert any("diverged" in str(cell) for row in shown.rows for cell in row)
    assert (
        claims.verdict(CLAIMS["adam_mini_resnet_on_par"], shown.values["resnet18.behind"], "laptop")[0]
        == "opposite_here"
    )


def test_full_width_accuracy_is_that_of_the_workstation_tier(root):
    synthetic_vision.write(root, "resnet", "workstation")
    _, shown, _ = exhibit.render(root, "adam_mini_fig18", "workstation")
    assert (
        shown.values["full.accuracy"]["value"] == pytest.approx(80 - 1, abs=0.02)
        and shown.values["full.accuracy"]["n"] == 3
    )
    assert exhibit.render(root, "adam_mini_fig18", "paper")[1].values["full.accuracy"]["value"] is None


@pytest.mark.parametrize(
    "points, verdict",
    [(0.0, "inconclusive"), (0.2, "inconclusive"), (10.0, "opposite_here"), (-10.0, "same_direction")],
)
def test_on_par_is_judged_by_the_margin_of_the_claim_and_the_sample_that_was_asked(root, points, verdict):
    """1,024 pictures at 80 % cannot tell 0.2 points, however well the seeds agree."""
    synthetic_vision.write(root, "resnet", points={**POINTS, "adam_mini": points})
    runs = quarters.of(load(root, ["resnet"], "laptop", {}), "resnet18")
    behind = quarters.behind(runs, quarters.ACCURACY)
    assert claims.verdict(CLAIMS["adam_mini_resnet_on_par"], behind, "laptop")[0] == verdict
    error = quarters.sampling([*runs["adamw"], *runs["adam_mini"]], quarters.ACCURACY)
    assert 1.5 < error < 2 and behind["high"] - behind["value"] > 1.95 * error


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_samples_are_shown_four_by_four_in_their_order():
    samples = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    shown = quarter_plots.tiles(samples)
    assert shown.shape == (8, 8, 4) and (shown[..., 3] == 255).all()
    assert shown[0, 2, 0] == 1 and shown[2, 0, 1] == 4 and shown[7, 7, 2] == 15
    colours = np.random.default_rng(0).integers(0, 256, (16, 3, 3, 3)).astype(np.uint8)
    assert (quarter_plots.tiles(colours)[:3, 3:6, :3] == colours[1]).all()


@pytest.mark.parametrize("id", FIGURES)
def test_figures_hold_no_pixels_but_samples(everything, id):
    text = (everything[0] / f"reports/laptop/so_far/figures/{id}.svg").read_text()
    assert text.count("<image") == (0 if id == "adam_mini_fig19" else 1)
