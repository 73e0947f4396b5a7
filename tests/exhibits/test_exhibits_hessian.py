"""Exhibits on Hessians, quadratics and preconditioners: what they read out of records, and what they say without."""

import numpy as np
import pytest
from synthetic import checkout
from synthetic_hessians import hessians, write, write_everything

from lowmem.exhibits import adam_mini_fig4
from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import hessian
from lowmem.reporting.panels import matrices
from lowmem.reporting.runs import load, where

MODULES = hessian.MODULES


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # dozens of records: nothing here has to survive a power cut
    return checkout(tmp_path)


def test_excess_is_the_share_minus_the_upper_end_of_the_null(root):
    for experiment in ("hessian_transformer", "hessian_deep"):
        write(root, experiment, "laptop", hessians)
    values = exhibit.render(root, "adam_mini_fig7", "laptop")[1].values
    for name in (*MODULES, "deep"):
        assert values[f"excess.{name}"]["value"] == pytest.approx(0.61 - 0.2)
        assert values[f"excess.{name}"]["n"] == 3
    assert values["share.least"]["value"] == pytest.approx(0.61)


def test_every_picture_carries_its_share_and_the_interval_of_the_null(root, monkeypatch):
    notes = []
    monkeypatch.setattr(matrices, "show", lambda axes, picture, blocks, title, note: notes.append(note))
    for experiment in ("hessian_transformer", "hessian_mlp"):
        write(root, experiment, "laptop", hessians)
    for id in ("adam_mini_fig7", "adam_mini_fig3"):
        exhibit.make(root, id, "laptop")
    assert notes == ["inside 60 %\nrandom 10.0 to 20.0 %"] * (8 + 3)


def test_the_worst_module_decides(root):
    def measured(run):
        final, arrays = hessians(run)
        for stage in final["stages"].values():
            stage["modules"]["value"]["share"] = 0.1 + 0.01 * run["seed"]
        return final, arrays

    for experiment in ("hessian_transformer", "hessian_deep"):
        write(root, experiment, "laptop", measured)
    exhibit.make(root, "adam_mini_fig7", "laptop")
    decided = {
        id: claims.decide(root, f"adam_mini_hessian_{id}", "laptop")["verdict"] for id in ("value", "key", "deep")
    }
    assert decided == {"value": "contradicted", "key": "reproduced", "deep": "contradicted"}
    assert claims.decide(root, "adam_mini_hessian_mostly_inside", "laptop")["verdict"] == "contradicted"


def test_a_missing_run_leaves_no_number_for_its_claims_and_keeps_those_of_the_others(root):
    write(root, "hessian_transformer", "laptop", hessians)
    run = experiments.runs(root, "hessian_transformer", "laptop")[2]
    (root / "results/laptop" / run["id"] / "record.json").unlink()
    _, shown, runs = exhibit.render(root, "adam_mini_fig7", "laptop")
    assert shown.values["excess.query"]["value"] is None and "seed2" in shown.values["excess.query"]["reason"]
    assert any(row[-1] == 2 for row in shown.rows) and len(runs.used()) == 2


@pytest.mark.parametrize("id", ["adam_mini_fig2", "adam_mini_fig3", "adam_mini_fig7", "adam_mini_fig4"])
def test_lost_arrays_cost_the_picture_only(root, id):
    write_everything(root)
    for path in (root / "results").rglob("arrays.npz"):
        path.unlink()
    exhibit.make(root, id, "laptop")
    assert "arrays are lost" in (root / f"reports/laptop/figures/{id}.svg").read_text()


def test_figures_with_all_records_hold_pictures_and_every_value(everything):
    for id in ("adam_mini_fig2", "adam_mini_fig3", "adam_mini_fig4", "adam_mini_fig5", "adam_mini_fig7"):
        text = (everything[0] / f"reports/laptop/so_far/figures/{id}.svg").read_text()
        assert (text.count("<image") >= 3) == (id != "adam_mini_fig5"), id
        assert all(value["value"] is not None for value in everything[1][id].values.values()), id


def test_tables_with_all_records_have_all_values(root):
    write_everything(root)
    for id in ("adam_mini_table_kappa", "extra_hessian_partition"):
        _, shown, _ = exhibit.render(root, id, "laptop")
        assert all(value["value"] is not None for value in shown.values.values()), id
    agreement = shown.values["agreement.least"]
    assert agreement["value"] == pytest.approx(0.9) and agreement["low"] == pytest.approx(0.9)


def test_earlier_checks_of_ours_are_not_listed_as_published(root):
    write_everything(root)
    _, shown, _ = exhibit.render(root, "adam_mini_table_kappa", "laptop")
    assert [row[-1] for row in shown.rows[:3]] == [141, 86, 81]
    assert all("141" not in str(entry["value"]) for entry in shown.published)


def test_the_class_effect_is_paired_by_seed(root):
    def measured(run):
        classes = run["config"]["measure"]["classes"]
        return hessians(run, share=0.3 + 0.02 * classes + 0.1 * run["seed"])  # seeds differ by far more than classes

    write(root, "hessian_mlp", "laptop", measured)
    effect = exhibit.render(root, "adam_mini_fig3", "laptop")[1].values["classes.effect"]
    assert effect["value"] == pytest.approx(0.16) and effect["high"] - effect["low"] < 1e-9


def test_zero_losses_are_compared_without_infinities():
    assert adam_mini_fig4.decades(1e-10, 0.0) == pytest.approx(290)
    assert adam_mini_fig4.decades(0.0, 0.0) == 0


def test_the_order_is_the_smaller_of_both_distances(root):
    write_everything(root)
    runs = where(load(root, ["quadratic"], "laptop", {}), problem="paper")
    one, mid, low = (
        [adam_mini_fig4.losses(runs, "total", "100", m)[0]] for m in ("single", "adam_frozen", "blockwise")
    )
    first = min(adam_mini_fig4.decades(one[0], mid[0]), adam_mini_fig4.decades(mid[0], low[0]))
    assert adam_mini_fig4.order(runs[:1], "adam_frozen", "100").value == pytest.approx(first)


def test_every_panel_has_its_claim():
    from synthetic import ROOT

    wanted = {claim["value"] for claim in claims.load(ROOT) if claim["exhibit"] == "adam_mini_fig7"}
    assert {f"excess.{name}" for name in MODULES} <= wanted


def test_all_levels_of_the_colour_scale_are_used():
    values = np.geomspace(1e-3, 0.999, 400)
    assert len(np.unique(matrices.NORM(values))) == matrices.COLOURS.N
