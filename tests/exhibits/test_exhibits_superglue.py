"""Exhibits on the long runs of SuperGLUE: what counts as learned, and what is compared on the same questions."""

import shutil

import numpy as np
import pytest
from synthetic import ROOT, checkout, record

from lowmem.finetuning import answer_scores
from lowmem.pipeline import archive, experiments
from lowmem.pipeline.record import write_arrays
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import learnable, same_questions
from lowmem.reporting.numbers import superglue as ft
from lowmem.reporting.runs import load

ACCURACY = {"zero": 50.0, "1e.5": 61.0, "3e.5": 66.0, "1e.4": 90.0}
LOSS = {"zero": 0.9, "1e.5": 0.68, "3e.5": 0.66, "1e.4": 0.67}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path)


def write_pilot(root, questions=1000, leave_out=()):
    for run in experiments.runs(root, "superglue_pilot", "overnight"):
        task, rate = run["variant"].rsplit("-", 1)
        if task not in leave_out:
            final = {"accuracy": ACCURACY[rate], "most": 62.0, "choice_loss": LOSS[rate], "questions": questions}
            record(root, run, {**final, "auc": 0.7, "val_loss": 0.3, "first": 40.0})


def test_a_task_is_learned_at_the_rate_of_the_lowest_loss_or_not_at_all(root):
    write_pilot(root)
    shown = exhibit.render(root, "extra_superglue_pilot", "overnight")[1]
    told = {(row[0], row[1]): row for row in shown.rows}
    assert told["BoolQ", "3e-05, once"][-1] == "yes" and told["BoolQ", "0.0001, once"][-1] == ""
    assert told["BoolQ", "3e-05, once"][3] == "65.1"  # 62 + 2 * sqrt(.62 * .38 / 1000)
    assert told["RTE", "3e-05, 3 times"][-1] == "yes" and shown.values["rte_3.learned"]["value"] == 1


def test_few_questions_learn_nothing(root):
    write_pilot(root, questions=400)  # 62 + 2 * 2.4 points
    runs = load(root, ["superglue_pilot"], "overnight", {}).all
    assert set(learnable.verdicts(runs).values()) == {False}


def test_stand_ins_decide_nothing_about_the_task_they_stand_in_for(root):
    write_pilot(root, leave_out=("rte", "rte_3", "copa", "copa_3", "multirc"))
    runs = load(root, ["superglue_pilot"], "overnight", {}).all
    assert learnable.verdicts(runs) == {"boolq": True, "wic": True, "wsc": True}


def test_a_pilot_without_records_says_so(root):
    shown = exhibit.render(root, "extra_superglue_pilot", "overnight")[1]
    assert shown.values == {} and all("not run" in row[2] for row in shown.rows)


def test_a_model_that_only_knows_frequencies_has_their_entropy_as_its_loss(root):
    write_pilot(root)
    run = load(root, ["superglue_pilot"], "overnight", {}).all[0]
    assert learnable.chance_loss(run) == pytest.approx(0.6640641)


# -- the long runs ---------------------------------------------------------------------------------------------------

QUESTIONS = 400
RIGHT = {"zero": 0.5, "lora": 0.66, "lomo": 0.70, "adamw": 0.72, "lora_lomo": 0.67}  # others 0.6


def answered(task, method, seed):
    """Costs of answers to QUESTIONS: hard ones are hard for all methods, and better methods get more of them right."""
    shared, own = np.random.default_rng(len(task)), np.random.default_rng(seed)
    labels = (shared.random(QUESTIONS) < 0.6).astype(int)
    hard, luck = shared.random(QUESTIONS), 0.01 * own.standard_normal(QUESTIONS)
    lead = 2.0 * (RIGHT.get(method, 0.6) - hard + luck)
    nats = np.ones((QUESTIONS, 2), dtype=np.float32)
    nats[np.arange(QUESTIONS), labels] -= lead.astype(np.float32)
    return answer_scores.Costs(nats, np.full((QUESTIONS, 2), 2), labels)


def write_long(root, leave_out=()):
    """Records of tier overnight in its results, with what each answer cost; returns the runs."""
    planned = [run for run in experiments.runs(root, "superglue", "overnight") if run["variant"] not in leave_out]
    for run in planned:
        task, method = run["variant"].split("-")
        found = answered(task, method, run["seed"])
        folder = root / "results/overnight" / run["id"]
        folder.mkdir(parents=True)
        lines = [{"step": k, "train_loss": 0.3 + 1 / k} for k in range(1, run["config"]["train"]["steps"] + 1)]
        final = {**answer_scores.scores(found, "sum"), "step": len(lines)}
        lines = [*lines[:-1], {**lines[-1], **final}] if lines else [{"step": 0, **final}]
        memory = {"parameters": 538_000_000, "gradients": 0, "optimizer_state": 2}
        record(root, run, final, lines, memory=memory, arrays=write_arrays(folder, vars(found)))
    return planned


def test_every_value_of_the_long_runs_is_there_in_their_tier_and_archived_elsewhere(root):
    write_long(root)
    archive.keep(root, "overnight/superglue")
    for id in ("lomo_table3", "lomo_fig3", "lomo_fig4", "lomo_fig5"):
        own, elsewhere = (exhibit.render(root, id, tier)[1].values for tier in ("overnight", "laptop"))
        judged = {name: value for name, value in own.items() if name.startswith("long.")}
        assert judged and None not in {value["value"] for value in judged.values()}, id
        assert {name: value for name, value in elsewhere.items() if name.startswith("long.")} == judged
        premise = "boolq.learned_margin"  # of the pilot's runs, and not of these
        live = [value for name, value in elsewhere.items() if not name.startswith("long.") and name != premise]
        assert {value["reason"] for value in live} == {ft.JUDGES_NOTHING}, id


def test_methods_are_compared_on_the_same_questions(root):
    write_long(root)
    values = exhibit.render(root, "lomo_table3", "overnight")[1].values
    gain, loss = values["gain.lomo_lora"], values["loss.lomo_lora"]
    assert 2 < gain["value"] < 6 and gain["low"] > 0 and loss["high"] < 0
    runs = {run["variant"]: [] for run in experiments.runs(root, "superglue", "overnight")}
    for run in load(root, ["superglue"], "overnight", {}).all:
        runs[run.variant].append(run)
    paired = same_questions.error([runs["rte-lomo"]], [runs["rte-lora"]], "accuracy")
    alone = ft.sampling([runs["rte-lomo"]], [runs["rte-lora"]])
    assert 0 < paired < 0.5 * alone


def test_the_error_of_the_questions_is_in_the_interval_even_when_seeds_agree(root):
    write_long(root)
    loaded = load(root, ["superglue"], "overnight", {}).all
    lomo, lora = ([run for run in loaded if run.variant == f"rte-{name}"] for name in ("lomo", "lora"))
    difference = same_questions.over_seeds(lomo, "accuracy") - same_questions.over_seeds(lora, "accuracy")
    expected = difference.std(ddof=1) / np.sqrt(QUESTIONS)
    assert same_questions.error([lomo], [lora], "accuracy") == pytest.approx(expected)
    found = ft.gain(ft.grouped(loaded), "lomo", "lora")
    assert (found["high"] - found["low"]) / 2 >= 1.95 * expected


def test_runs_that_kept_nothing_or_were_asked_differently_have_no_paired_error(root):
    write_long(root)
    loaded = {run.variant: run for run in load(root, ["superglue"], "overnight", {}).all}
    lomo, lora = loaded["rte-lomo"], loaded["rte-lora"]
    write_arrays(lora.folder, {})
    assert same_questions.error([[lomo]], [[lora]], "accuracy") is None
    few = answered("rte", "lora", 0)
    few = {name: found[:100] for name, found in vars(few).items()}
    lora.record["arrays"] = write_arrays(lora.folder, few)
    assert same_questions.error([[lomo]], [[lora]], "accuracy") is None


def test_a_task_that_nothing_learns_says_so_and_keeps_its_zero_shot_score(root):
    write_long(root)
    write_pilot(root, questions=400)
    archive.keep(root, "overnight/superglue_pilot")
    shown = exhibit.render(root, "lomo_table3", "overnight")[1]
    at = shown.columns.index("RTE")
    rows = {(row[0], row[3]): row for row in shown.rows if row[2] == "overnight"}
    assert rows["LOMO", "last epoch"][at] == "not learnable"
    assert rows["no training", "as it is"][at].startswith("5")


def test_the_table_shows_loss_auc_frequency_and_memory_beside_accuracy_and_says_what_it_can_see(root):
    write_long(root)
    shown = exhibit.render(root, "lomo_table3", "overnight")[1]
    row = next(row for row in shown.rows if row[0] == "LOMO" and row[2] == "overnight")
    beside = [row[shown.columns.index(name)] for name in ("RTE: loss (nat)", "RTE: AUC")]
    assert row[3] == "last epoch" and all("[" in cell for cell in beside)
    assert not any("BoolQ:" in name for name in shown.columns)  # nothing is trained on it there
    assert any(row[0] == "the most frequent answer" and row[2] == "overnight" for row in shown.rows)
    assert next(row for row in shown.rows if row[0] == "LOMO" and row[3] == "last epoch")[-1] == "538"
    assert any("which separates them; differences below" in told for told in shown.deviations)


def test_methods_without_any_record_share_one_row(root):
    assert [row[0] for row in overnight_rows(root) if row[3] == "not run: no record"] == [f"{len(ft.METHODS)} methods"]
    told = exhibit.render(root, "lomo_table3", "overnight")[1].deviations[-1]
    assert told.startswith("Not run: no record (overnight): no training, LoRA, ") and ft.METHODS["adalomo_bf16"] in told
    write_long(root)
    shutil.rmtree(root / "results/overnight/superglue/rte-prefix")
    waiting = [row[0] for row in overnight_rows(root) if row[3] == "not run: no record"]
    assert waiting == ["prefix tuning"]
    assert [row[0] for row in overnight_rows(root)].count("LOMO") == 1


def overnight_rows(root):
    return [row for row in exhibit.render(root, "lomo_table3", "overnight")[1].rows if row[2] == "overnight"]


def test_accuracy_is_judged_only_where_adamw_beats_the_most_frequent_answer(root):
    write_long(root)
    values = exhibit.render(root, "lomo_table3", "overnight")[1].values
    assert values["long.adamw.above_frequent"]["low"] > 0
    found = ft.grouped(load(root, ["superglue"], "overnight", {}).all)
    assert ft.above_frequent(found, "zero")["high"] < 0


def test_settings_of_the_long_runs_are_told_once_they_are_there_and_the_rates_that_were_tried_always(root):
    def row(shown):
        return next(row for row in shown.rows if row[:2] == ["LOMO", "learning rate"])

    assert row(exhibit.render(root, "lomo_table4", "laptop")[1])[-2:] == [
        "not run: no record",
        "0.02, 0.04, 0.08, 0.16, 0.32",
    ]
    write_long(root)
    assert row(exhibit.render(root, "lomo_table4", "overnight")[1])[-2:] == ["0.16", "0.02, 0.04, 0.08, 0.16, 0.32"]


# -- the paper's task is not the one that a model of this size learns ---------------------------------------------------

INSTEAD = (
    "RTE in place of BoolQ, which a model of this size did not learn in 1,000 examples: "
    "66.0 % where 67.0 % counts as learned"
)
FIGURES = ("lomo_fig3", "lomo_fig4", "lomo_fig5")


def train(root, *tasks):
    """Let tier overnight train methods on these tasks, and ask the others without training."""
    if (root / "workflow").is_symlink():  # a copy of its own
        (root / "workflow").unlink()
        shutil.copytree(ROOT / "workflow", root / "workflow")
    path = root / "workflow/config/experiments/superglue.yaml"
    text, left = path.read_text(), [task for task in ft.TASKS if task not in tasks]
    start = text.index('"*-adam_mini_backward/seed[12]"')
    end = text.index("]\n", start)
    path.write_text(
        text[:start] + ", ".join(['"*-adam_mini_backward/seed[12]"', *(f'"{t}-[!z]*"' for t in left)]) + text[end:]
    )


def titles(shown):
    return " ".join(axes.get_title(loc="left") for axes in shown.figure.axes)


def board(root, tier, id):
    """The verdict on a claim and why, from a freshly made exhibit."""
    claim = next(claim for claim in claims.load(root) if claim["id"] == id)
    values = exhibit.render(root, claim["exhibit"], tier)[1].values
    return claims.verdict(claim, values[claim["value"]], tier, values[claim["gate"]["value"]])


def test_figures_name_the_task_in_place_of_the_papers_and_the_pilots_reason(root):
    write_pilot(root, questions=382)  # 62 + 2 * sqrt(.62 * .38 / 382)
    archive.keep(root, "overnight/superglue_pilot")
    for id in FIGURES:
        for tier in ("overnight", "laptop"):
            shown = exhibit.render(root, id, tier)[1]
            assert INSTEAD in shown.caption and "RTE" in titles(shown), (id, tier)
            assert ("BoolQ" in titles(shown)) == (tier == "laptop" or id == "lomo_fig3"), (id, tier)


def test_a_task_that_could_be_learned_and_is_not_trained_is_not_called_unlearnable(root):
    write_pilot(root)
    archive.keep(root, "overnight/superglue_pilot")
    for id in FIGURES:
        assert "BoolQ, on which this tier trains nothing" in exhibit.render(root, id, "overnight")[1].caption


def test_where_the_papers_task_is_trained_nothing_stands_in_its_place(root):
    train(root, "boolq", "wic")
    write_long(root)
    for id in FIGURES:
        shown = exhibit.render(root, id, "overnight")[1]
        assert "in place of" not in shown.caption
        assert "BoolQ" in titles(shown) and "WIC" in titles(shown) and "RTE" not in titles(shown)
    values = exhibit.render(root, "lomo_fig5", "overnight")[1].values
    assert values["lomo.last"] == values["long.boolq.lomo.last"]
    assert exhibit.render(root, "lomo_fig4", "overnight")[1].values["early_drop.lomo"]["value"] > 0.5


def test_a_fall_over_two_tasks_is_the_mean_of_their_falls_at_each_seed(root):
    def early():
        return exhibit.render(root, "lomo_fig4", "overnight")[1].values["long.early_drop.lomo"]

    train(root, "boolq", "wic")
    write_long(root)
    both = early()
    assert both["n"] == 3
    alone = []
    for task in ("boolq", "wic"):
        train(root, task)
        alone.append(early()["value"])
    assert both["value"] == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize("id", ["lomo_boolq_accuracy", "lomo_loss_falls_early"])
def test_claims_on_a_task_that_was_not_learned_cannot_be_tested_and_say_by_how_much(root, id):
    assert board(root, "overnight", id)[0] == "not_run"
    write_pilot(root, questions=382)
    archive.keep(root, "overnight/superglue_pilot")
    for tier in ("overnight", "laptop"):
        verdict, why = board(root, tier, id)
        assert verdict == "not_testable" and "-0.967 points" in why, (tier, why)
    assert board(root, "paper", id) == (
        "not_run",
        board(root, "paper", id)[1],
    )  # other models, and ten times as many steps
    assert "pilot" not in board(root, "paper", id)[1]


def test_a_task_that_the_pilot_learned_leaves_its_claims_to_the_runs(root):
    train(root, "boolq")
    write_pilot(root)
    archive.keep(root, "overnight/superglue_pilot")
    write_long(root)
    assert board(root, "overnight", "lomo_loss_falls_early")[0] == "reproduced"
    assert board(root, "overnight", "lomo_boolq_accuracy")[0] == "same_direction"


def test_lomo_beside_lora_is_judged_only_where_adamw_learned(root, monkeypatch):
    monkeypatch.setitem(RIGHT, "adamw", 0.4)
    write_long(root)
    verdict, why = board(root, "overnight", "lomo_helps_lora")
    assert verdict == "not_testable" and "most frequent" in why
