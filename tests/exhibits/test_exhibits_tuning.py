"""Exhibits on fine-tuning and on LOMO's text: what they read out of records, whose names they print, what they refuse."""

import json
import re

import pytest
import synthetic_tuning as made
from synthetic import checkout, record

from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.runs import load, where

IDS = ["lomo_table3", "lomo_table4", "lomo_fig3", "lomo_fig4", "lomo_fig5", "lomo_eq", "lomo_clipping", "adalomo_fig1"]
IDS += ["extra_rounding", "extra_peak_memory"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path)


@pytest.fixture
def full(everything):
    """full(id): an exhibit made from all records."""
    return everything[1].__getitem__


@pytest.mark.parametrize("id", IDS)
def test_with_all_records_every_value_of_this_report_is_there(full, id):
    shown = full(id)
    elsewhere = ("long.", "boolq.learned_margin")  # of archived runs, and not of these
    own = {name: value for name, value in shown.values.items() if not name.startswith(elsewhere)}
    silent = {name for name, value in own.items() if value.get("reason") == ft.JUDGES_NOTHING}
    there = {name: value["value"] for name, value in own.items() if name not in silent}
    assert (there or silent) and None not in there.values(), there
    assert not silent or id in ("lomo_table3", "lomo_fig3", "lomo_fig4", "lomo_fig5")
    assert not re.search(r"\bnan\b", json.dumps([shown.rows, shown.values]), re.IGNORECASE)


@pytest.mark.parametrize("id", IDS)
def test_without_records_every_value_says_why(root, id):
    _, shown, _ = exhibit.render(root, id, "paper")
    for name, value in shown.values.items():
        assert value["value"] is not None or value["reason"].startswith("not run"), (name, value)


def test_a_stand_in_never_carries_the_name_of_what_it_stands_in_for(full):
    shown = full("lomo_table3")
    assert "WordNet senses (for WIC)" in shown.columns and "BoolQ" in shown.columns and "WIC" not in shown.columns
    row = next(row for row in shown.rows if row[:3] == ["LOMO", "LLaMA-7B", "published"])
    assert row[shown.columns.index("WordNet senses (for WIC)")] == "71.2 on WIC"
    assert row[shown.columns.index("BoolQ")] == "87.5"


def test_larger_models_have_rows_of_their_own_where_they_can_run(root, full):
    shown = exhibit.render(root, "lomo_table3", "paper")[1]
    rows = {(row[0], row[1], row[2]) for row in shown.rows}
    for size in ("13", "30", "65"):
        assert {("LOMO", f"huggyllama/llama-{size}b", "paper"), ("LOMO", f"LLaMA-{size}B", "published")} <= rows
    assert all("not run" in row[5] for row in shown.rows if row[2] == "paper")
    assert not any("LLaMA-13B" in row for row in full("lomo_table3").rows)


def test_wsc_says_what_it_needs(full):
    shown = full("lomo_table3")
    live = next(row for row in shown.rows if row[0] == "LOMO" and row[2].startswith("laptop"))
    assert live[shown.columns.index("WSC")] == "not run: needs the hub, superglue_dir or bigbench=true"


def test_seeds_and_rates_of_the_runs_stand_below_the_table(full):
    told = " ".join(full("lomo_table3").deviations)
    assert (
        "This report: SmolLM2-135M-Instruct" in told
        and "seeds: 1 (paper: 1). Learning rates: LoRA 0.0005, LOMO 0.03." in told
    )


def test_every_cell_of_every_method_has_an_interval_or_a_reason(full):
    shown = full("lomo_table3")
    first, last = 4, shown.columns.index("average")
    rows = [row for row in shown.rows if row[3].startswith(("last epoch", "as it is"))]
    assert {row[0] for row in rows} >= {"no training", "LoRA", "LOMO"}
    for row in rows:
        assert all("[" in cell or cell.startswith(("not run", "other data")) for cell in row[first : last + 1]), row


def test_no_interval_of_an_accuracy_leaves_what_accuracies_can_be():
    assert ft.percent([5.0, 95.0], 0.0) == {
        **ft.percent([5.0, 95.0], 0.0),
        "value": 50.0,
        "low": 0.0,
        "high": 100.0,
        "n": 2,
    }
    assert ft.percent([50.0], 0.0)["low"] is None


def test_a_run_alone_gets_the_interval_of_its_questions(root):
    made.write_accuracies(root, "superglue", level=lambda run: 50.0)
    runs = [run for run in load(root, ["superglue"], "laptop", {}) if run.variant == "boolq-zero"]
    entry = ft.among_questions(ft.last(runs), [runs])
    assert entry["low"] == pytest.approx(38.1, abs=1.5) and entry["high"] == pytest.approx(61.9, abs=1.5)  # of 64
    made.write_accuracies(root, "superglue", "workstation", level=lambda run: 50.0)
    several = where(load(root, ["superglue"], "workstation", {}), task="boolq", method="lomo", point="3e.2")
    assert len(several) == 3 and ft.among_questions(ft.last(several), [several])["method"] == "t"


def test_gains_are_means_over_tasks_of_the_last_epoch_and_best_takes_any_epoch(root):
    made.write_accuracies(root, "superglue", "workstation")
    _, shown, _ = exhibit.render(root, "lomo_table3", "workstation")
    assert shown.values["gain.lomo_lora"]["value"] == pytest.approx(3.0, abs=0.05)
    assert shown.values["gain.lomo_lora"]["n"] == 3
    at = shown.columns.index("BoolQ")
    rows = {row[3]: row[at] for row in shown.rows if row[0] == "LOMO" and row[2] == "workstation"}
    assert float(rows["best, one seed"]) != float(rows["last epoch"].split(" ")[0])


def test_a_missing_task_takes_the_number_away_instead_of_averaging_the_rest(root):
    made.write_accuracies(root, "superglue", "workstation")
    gone = next(run for run in experiments.runs(root, "superglue", "workstation") if "wic-lomo" in run["variant"])
    (root / "results/workstation" / gone["id"] / "record.json").unlink()
    value = exhibit.render(root, "lomo_table3", "workstation")[1].values["gain.lomo_lora"]
    assert value["value"] is None and "not run" in value["reason"]


def test_a_diverged_lomo_run_counts_against_lomo(root):
    made.write_accuracies(root, "superglue", "workstation")
    run = next(run for run in experiments.runs(root, "superglue", "workstation") if "boolq-lomo" in run["variant"])
    record(root, run, {"accuracy": None}, [], status="diverged", reason="loss is not finite at step 3")
    _, shown, _ = exhibit.render(root, "lomo_table3", "workstation")
    assert shown.values["gain.lomo_lora"]["failed"] == "subject"
    claim = next(c for c in claims.load(root) if c["id"] == "lomo_beats_lora")
    premise = shown.values[claim["gate"]["value"]]
    assert claims.verdict(claim, shown.values["gain.lomo_lora"], "workstation", premise)[0] == "opposite_here"


def test_lora_and_lomo_is_compared_rank_by_rank(root):
    by_rank = {"r1": 1.0, "r2": 1.0, "r4": 3.0, "r8": 3.0, "none": 0.0}

    def level(run):
        _, method, rank = run["variant"].split("-")
        return 60 + (by_rank[rank] if method.startswith("lora_lomo") else 0)

    made.write_accuracies(root, "lora_lomo", "workstation", level)
    assert exhibit.render(root, "lomo_fig3", "workstation")[1].values["gain"]["value"] == pytest.approx(2.0, abs=0.1)


def test_the_paper_tier_keeps_every_published_setting_but_the_added_rates(root):
    _, shown, _ = exhibit.render(root, "lomo_table4", "paper")
    changed = {(row[0], row[1]) for row in shown.rows if row[4] == "no"}
    added = {("LoRA", "learning rate"), ("LOMO", "warm-up ratio"), ("LoRA + LOMO", "learning rate of LoRA")}
    assert changed <= added | {("LoRA + LOMO", "warm-up ratio of LOMO"), ("LoRA", "warm-up ratio")}
    assert ("all", "batch size") not in changed and ("LOMO", "learning rate") not in changed


def test_a_clipping_that_lets_seeds_diverge_has_fewer_usable_rates(root):
    made.write_losses(root, "lomo_clipping")
    before = exhibit.render(root, "lomo_clipping", "laptop")[1].values
    for run in experiments.runs(root, "lomo_clipping", "laptop"):
        if run["variant"] == "none-1e1":
            record(root, run, {"val_loss": None}, [], status="diverged", reason="loss is not finite at step 4")
    after = exhibit.render(root, "lomo_clipping", "laptop")[1].values
    assert after["usable.none"]["value"] == before["usable.none"]["value"] - 1
    assert after["usable.norm_minus_none"]["value"] == before["usable.norm_minus_none"]["value"] + 1


def test_peak_memory_is_told_over_inference_and_in_order(full):
    values = full("extra_peak_memory").values
    assert values["lomo.over_inference"]["value"] == pytest.approx(1.1) and values["order"]["value"] == 1
    assert values["lomo.extra_weights"]["value"] == pytest.approx(10 / 90)


def test_rounding_is_told_as_a_share_of_what_fp32_changes(full):
    assert full("extra_rounding").values["kept.bf16"]["value"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("variant", "found"),
    [
        ("boolq-lomo_3e.2_w20", ("lomo", "3e.2_w20")),
        ("wic-zero", ("zero", "")),
        ("rte-adam_mini_backward_1e.5", ("adam_mini_backward", "1e.5")),
    ],
)
def test_runs_know_their_method_and_its_point(variant, found):
    runs = load(experiments.find_root(), ["superglue"], "paper", {})
    assert {ft.method(run) for run in runs if run.variant == variant} == {found}
