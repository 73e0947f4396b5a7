"""Exhibits on the long runs of SuperGLUE: what counts as learned, and what is compared on the same questions."""

import pytest
from synthetic import checkout, record

from lowmem import exhibit, experiments
from lowmem.drawing import learnable

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
    runs = exhibit.load(root, ["superglue_pilot"], "overnight", {}).all
    assert set(learnable.verdicts(runs).values()) == {False}


def test_stand_ins_decide_nothing_about_the_task_they_stand_in_for(root):
    write_pilot(root, leave_out=("rte", "rte_3", "copa", "copa_3", "multirc"))
    runs = exhibit.load(root, ["superglue_pilot"], "overnight", {}).all
    assert learnable.verdicts(runs) == {"boolq": True, "wic": True, "wsc": True}


def test_a_pilot_without_records_says_so(root):
    shown = exhibit.render(root, "extra_superglue_pilot", "overnight")[1]
    assert shown.values == {} and all("not run" in row[2] for row in shown.rows)


def test_a_model_that_only_knows_frequencies_has_their_entropy_as_its_loss(root):
    write_pilot(root)
    run = exhibit.load(root, ["superglue_pilot"], "overnight", {}).all[0]
    assert learnable.chance_loss(run) == pytest.approx(0.6640641)
