"""Exhibits on language-model runs: what they read out of records, what they refuse, and what divergence does to them."""

import json
import math
import re
import shutil

import pytest
from synthetic import ROOT, checkout, record, write_all
from synthetic_losses import OFFSETS, curve, method, off_rate, write

from lowmem.exhibits import adam_mini_fig8, adam_mini_fig9
from lowmem.files import read_yaml
from lowmem.pipeline import archive, experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import losses

FIGURES = ("fig1", "fig6", "fig8", "fig9", "fig11", "fig12", "fig13", "fig14", "fig15", "fig16")
IDS = [f"adam_mini_{name}" for name in (*FIGURES, "table4")] + ["extra_adam_mini_backward", "extra_adafactor_lr"]
BESIDE = 0.1 * math.log10(3) ** 2  # loss one rate beside the best, where rates are a factor 3 apart


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path)


@pytest.fixture
def full(everything):
    """full(id): an exhibit made from all records."""
    return everything[1].__getitem__


def values(root, id, tier="laptop"):
    return exhibit.render(root, id, tier)[1].values


def diverge(root, experiment, part, tier="laptop"):
    """Make every run diverge whose variant holds this part."""
    for run in experiments.runs(root, experiment, tier):
        if part in run["variant"]:
            short = curve(run, 0, 3)
            reason = "loss is not finite at step 4"
            record(root, run, {"val_loss": None, "step": 4}, short, status="diverged", reason=reason)


# -- what they read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS)
def test_with_all_records_every_value_is_there_and_nothing_is_nan(full, id):
    shown = full(id)
    other = ("own_rate.", "same_rate.")  # readings that this tier has no runs for, or not of every method
    assert all(value["value"] is not None for name, value in shown.values.items() if not name.startswith(other))
    assert all(value["value"] is not None or value["reason"].startswith("not run") for value in shown.values.values())
    assert sum(value["value"] is not None for value in shown.values.values())
    assert not re.search(r"\bnan\b", json.dumps([shown.rows, shown.values]), re.IGNORECASE)


def test_gaps_are_those_that_the_records_hold(full):
    table = full("adam_mini_table4").values
    assert table["gap.worst"]["value"] == pytest.approx(0.004, abs=0.001)
    assert table["gap.worst"]["n"] == 5
    run = full("adam_mini_fig11").values
    assert run["gap.early"]["value"] == pytest.approx(0.004 + 0.03 * 0.9375, abs=0.001)
    assert run["gap.late"]["value"] == pytest.approx(0.004 + 0.03 * 0.0375, abs=0.001)
    assert run["gap.change"]["value"] == pytest.approx(run["gap.late"]["value"] - run["gap.early"]["value"])
    large = full("adam_mini_fig12").values
    assert large["early.least"]["low"] > 0.02 and large["gap.worst"]["high"] < 0.01


def test_leads_are_taken_at_best_rates_over_an_equal_grid(full):
    for id, names in (
        ("adam_mini_fig8", ("adafactor", "adafactor_zhai", "came", "sm3")),
        ("adam_mini_fig15", ("came", "sm3", "lion", "lamb", "adalomo")),
        ("adam_mini_fig13", ("adafactor", "adafactor_zhai")),
    ):
        shown = full(id)
        for name in names:
            assert shown.values[f"lead.{name}"]["value"] == pytest.approx(OFFSETS[name] - 0.004, abs=0.001)
        least = min(OFFSETS[name] for name in names) - 0.004
        assert shown.values["lead.least"]["value"] == pytest.approx(least, abs=0.001)


@pytest.mark.parametrize("experiment", ["gpt2_baselines", "llama_variants"])
@pytest.mark.parametrize("tier", ["workstation", "paper"])
def test_every_method_of_a_comparison_has_as_many_rates_as_the_others(experiment, tier):
    found = {}
    for run in experiments.runs(ROOT, experiment, tier):
        if not run["variant"].split("-")[-2].endswith("_flags"):
            key = tuple(run["variant"].split("-")[:-1])
            found.setdefault(key[0] if len(key) > 1 else "", {}).setdefault(key[-1], set()).add(
                run["config"]["optimizer"]["lr"]
            )
    for methods in found.values():
        assert len({len(rates) for rates in methods.values()}) == 1, methods


def test_ablations_compare_best_rates_and_the_mean_with_its_nearest_rival(full):
    found = full("adam_mini_fig16").values
    assert found["value.gap"]["value"] == pytest.approx(-0.014, abs=0.001)
    assert found["mean.lead"]["value"] == pytest.approx(0.046, abs=0.001)
    assert found["embedding.excess"]["value"] == pytest.approx(0.096, abs=0.001)


def test_slopes_are_those_of_a_power_law(root):
    for run in experiments.runs(root, "llama_scaling", "laptop"):
        law = 3 * losses.parameters(run["config"]["model"]) ** (-0.1 - 0.02 * ("mini" in run["variant"]))
        law *= 1 + 0.01 * run["seed"]
        lines = [{"step": k, "tokens": k * 10, "train_loss": law, "val_loss": law} for k in range(1, 4)]
        record(root, run, {"val_loss": law, "train_loss": law, "step": 3, "tokens": 30}, lines)
    found = values(root, "adam_mini_fig9")
    assert found["slope.adamw"]["value"] == pytest.approx(-0.1)
    assert found["slope.difference"]["value"] == pytest.approx(-0.02)
    assert found["slope.difference"]["high"] - found["slope.difference"]["low"] < 1e-9


def test_the_published_slopes_come_out_of_the_published_perplexities():
    cells = read_yaml(ROOT / "data/published/adam_mini.yaml")["items"]["adam_mini.table4"]["values"]
    found = {
        optimizer: [
            math.log(v["value"]) for v in cells if v["what"] == "perplexity" and v["at"]["optimizer"] == optimizer
        ]
        for optimizer in ("AdamW", "Adam-mini")
    }
    nominal = [39e6, 67e6, 102e6, 162e6, 271e6, 1e9]  # as named, 1B too
    slopes = [adam_mini_fig9.fit(nominal, losses)[0] for losses in found.values()]
    assert slopes == pytest.approx([-0.1170, -0.1167], abs=1e-4)


def test_distance_of_trajectories_is_a_share_of_the_movement_of_adamw(full):
    found = full("adam_mini_fig8").values
    far = {name: 1 + 5 * OFFSETS[name] for name in (*adam_mini_fig8.BASELINES, "adam_mini")}
    assert found["closer.sm3"]["value"] == pytest.approx(far["sm3"] / far["adam_mini"], rel=1e-6)
    assert found["closer.least"]["value"] == pytest.approx(
        min(far[n] for n in adam_mini_fig8.BASELINES) / far["adam_mini"]
    )


def test_the_floor_under_distances_is_that_of_adamw_from_its_twin_at_the_same_rate(full, root):
    found = full("adam_mini_fig8").values
    assert found["distance.floor"]["value"] / found["distance.adam_mini"]["value"] == pytest.approx(0.1 / 1.02)
    write(root, "gpt2_baselines")
    for run in experiments.runs(root, "gpt2_baselines", "laptop"):
        if run["variant"].startswith("adamw_twin"):
            (root / "results/laptop" / run["id"] / "record.json").unlink()
    assert "not run" in values(root, "adam_mini_fig8")["distance.floor"]["reason"]


def test_the_twin_is_no_method_of_a_comparison(full):
    assert "AdamW, nudged" in {row[0] for row in full("adam_mini_fig8").rows}
    for id in ("adam_mini_fig15", "adam_mini_fig13", "extra_optimizers"):
        assert "AdamW, nudged" not in {row[0] for row in full(id).rows}


def test_spread_is_over_all_rates_and_decays(full):
    found = full("adam_mini_fig8").values
    assert found["spread.adamw"]["value"] == pytest.approx(0.1 * math.log10(4) ** 2, abs=0.001)
    assert abs(found["spread.difference"]["value"]) < 0.001


def test_left_out_blocks_take_the_best_rate_of_the_grid(root):
    write(
        root,
        "leave_x_out",
        offset=lambda run: {"adam": 0.0}.get(run["variant"], 0.02) - 0.03 * ("at_30" in run["variant"]),
    )
    found = values(root, "adam_mini_fig6")
    assert found["gap.worst"]["value"] == pytest.approx(-0.01, abs=0.001)
    assert found["mean.worst"]["value"] == pytest.approx(0.03, abs=0.001)


def test_setbacks_of_the_loss_measure_an_unsteady_run(root):
    write(root, "llama_variants")
    steady = values(root, "adam_mini_fig7")["default.roughness"]["value"]
    for run in experiments.runs(root, "llama_variants", "laptop"):
        if "default_partition" in run["variant"]:
            lines = curve(run, 0.3 + off_rate(run, [run["config"]["optimizer"]["lr"]]), 40)
            for line in lines[::5]:
                line["train_loss"] = line.get("train_loss", 4) + 1
            record(root, run, {"val_loss": lines[-1]["val_loss"]}, lines)
    assert values(root, "adam_mini_fig7")["default.roughness"]["value"] > 10 * steady


# -- what is missing or diverged ---------------------------------------------------------------------------------------


def test_a_diverged_rate_is_never_the_best_and_is_shown(root):
    write(root, "llama_variants", "workstation")
    diverge(root, "llama_variants", "adam_mini-3e.3", "workstation")  # the middle one, best before
    shown = exhibit.make(root, "adam_mini_fig13", "workstation")
    row = next(row for row in shown.rows if row[1] == "Adam-mini")
    assert row[2].endswith("(edge)")
    assert shown.values["lead.adafactor"]["value"] == pytest.approx(0.046 - BESIDE, abs=0.001)
    picture = (root / "reports/workstation/figures/adam_mini_fig13.svg").read_text()
    assert not re.search(r"\bnan\b", picture, re.IGNORECASE)


def test_a_method_that_diverges_at_every_rate_decides_by_its_side(root):
    write_all(root)
    diverge(root, "llama_variants", "14k-adam_mini-")
    exhibit.make(root, "adam_mini_fig13", "laptop")
    lost = claims.decide(root, "adam_mini_beats_adafactor_20m", "laptop")
    assert lost["verdict"] == "opposite_here" and "step 4" in lost["reason"]
    for run in experiments.runs(root, "llama_variants", "laptop"):
        if "14k-adam_mini-" in run["variant"]:
            lines = curve(run, 0, 40)
            record(root, run, {"val_loss": lines[-1]["val_loss"]}, lines)
    diverge(root, "llama_variants", "14k-adafactor-")
    exhibit.make(root, "adam_mini_fig13", "laptop")
    open_ = claims.decide(root, "adam_mini_beats_adafactor_20m", "laptop")
    assert open_["verdict"] == "inconclusive" and "every rate diverged" in open_["reason"]


def test_a_missing_run_of_a_grid_leaves_no_best_rate(root):
    write_all(root)
    run = next(r for r in experiments.runs(root, "gpt2_baselines", "laptop") if r["variant"].startswith("came"))
    (root / "results/laptop" / run["id"] / "record.json").unlink()
    found = values(root, "adam_mini_fig15")
    assert found["lead.came"]["value"] is None and "no record" in found["lead.came"]["reason"]
    assert found["lead.least"]["value"] is None and found["lead.sm3"]["value"] is not None
    assert claims.decide(root, "adam_mini_beats_others", "laptop")["verdict"] == "not_run"


def test_figures_show_where_a_run_diverged(root):
    write_all(root)
    diverge(root, "llama_long", "42k_long-adam_mini")
    shown = exhibit.make(root, "adam_mini_fig11", "laptop")
    assert shown.values["gap.late"] == {**shown.values["gap.late"], "value": None, "failed": "subject"}
    assert "not finite at step 4" in (root / "reports/laptop/figures/adam_mini_fig11.svg").read_text()
    assert claims.decide(root, "adam_mini_llama1b_ahead_late", "laptop")["verdict"] == "opposite_here"


def test_inert_rates_must_agree_to_the_last_bit(root):
    write(root, "llama_variants", offset=lambda run: OFFSETS[method(run)])
    for run in experiments.runs(root, "llama_variants", "laptop"):
        if "flags" in run["variant"]:
            record(root, run, {"val_loss": 6.0 + run["seed"]}, [])
    exhibit.make(root, "extra_adafactor_lr", "laptop")
    assert claims.decide(root, "extra_adafactor_flags_inert", "laptop")["verdict"] == "reproduced"
    record(root, run, {"val_loss": 6.0 + run["seed"] + 1e-12}, [])
    exhibit.make(root, "extra_adafactor_lr", "laptop")
    assert claims.decide(root, "extra_adafactor_flags_inert", "laptop")["verdict"] == "contradicted"


def test_updates_inside_backward_are_told_by_loss_and_bytes(root):
    write(root, "backward_update", offset=lambda run: 0.0)
    found = values(root, "extra_adam_mini_backward")
    assert found["gradient.share"] == {"value": 0.0, "unit": "of Adam-mini's"}
    assert 0 < found["loss.largest_difference"]["value"] < 0.05


# -- the published CPU result ------------------------------------------------------------------------------------------


def test_archived_records_stand_in_for_the_long_run_and_say_so(root):
    write(root, "char_shakespeare", "workstation", offset=lambda run: -1.0)
    assert archive.keep(root, "workstation/char_shakespeare") == 10
    shutil.rmtree(root / "results/workstation")
    write(root, "char_shakespeare", "laptop")
    _, shown, _ = exhibit.render(root, "extra_char_shakespeare", "laptop")
    tiers = [row[2] for row in shown.rows]
    assert tiers == ["workstation, archived"] * 2 + ["laptop"] * 2
    assert shown.values["adamw.val_loss"]["n"] == 5 and shown.values["adamw.seconds"]["value"] == 110.0
    assert shown.values["adamw.starts_loss"]["value"] == pytest.approx(shown.values["adamw.val_loss"]["value"] - 0.01)
    assert [row[4] for row in shown.rows[2:]] == ["another text"] * 2
    assert "shakespeare (for tinyshakespeare)" in shown.rows[-1][1]


def test_the_published_loss_is_in_sight_below_runs_that_miss_it(root):
    write(root, "char_shakespeare", "workstation", offset=lambda run: 1.0)
    _, shown, _ = exhibit.render(root, "extra_char_shakespeare", "workstation")
    [axes] = shown.figure.axes
    [mark] = [line for line in axes.get_lines() if line.get_label() == "_published"]
    low, high = axes.get_ylim()
    assert low < mark.get_ydata()[0] < high


def test_without_archived_records_the_published_result_is_not_run(root):
    write(root, "char_shakespeare", "laptop")
    assert values(root, "extra_char_shakespeare")["adamw.val_loss"]["reason"].startswith("not run")


def test_the_real_text_runs_as_published_on_the_workstation_tier():
    for tier in ("workstation", "paper"):
        run = experiments.runs(ROOT, "char_shakespeare", tier)[0]
        config = run["config"]
        assert config["data"] == {"dataset": "tinyshakespeare", "source": "package", "tokenizer": "char"}
        assert config["train"]["steps"] * config["train"]["batch_size"] * config["train"]["seq_len"] == 2000 * 12 * 64
        assert run["resources"]["gpus"] == 0 and losses.parameters(config["model"]) == 804096
