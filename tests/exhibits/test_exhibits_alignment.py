"""Exhibits on alignment: what they read out of records and a judge's file, and what missing and diverged runs do."""

import functools
import json
import re
from unittest import mock

import pytest
import synthetic_alignment
from synthetic import ROOT, checkout, record

from lowmem.cli import main
from lowmem.errors import Failed
from lowmem.finetuning import judge
from lowmem.pipeline import experiments
from lowmem.reporting import claims, exhibit
from lowmem.reporting.numbers import alignment
from lowmem.reporting.runs import Run, load_run

IDS = ("adam_mini_table3", "adam_mini_fig20")
CLAIMS = {claim["id"]: claim for claim in claims.load(ROOT) if claim["exhibit"] in IDS}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    return checkout(tmp_path / "root")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A root with all records, and its two exhibits made once for all tests that only read them."""
    top = checkout(tmp_path_factory.mktemp("every") / "root")
    with mock.patch("os.fsync"):
        synthetic_alignment.write_everything(top)
    return functools.cache(lambda id: exhibit.make(top, id, "laptop"))


@pytest.fixture
def full(root):
    synthetic_alignment.write_everything(root)
    return root


@functools.cache
def runs_of(experiment):
    return experiments.runs(ROOT, experiment, "laptop")


def rows_of(shown, label):
    return [row for row in shown.rows if row[0] == label]


def test_perplexities_rewards_and_gaps_are_those_of_the_records(every):
    shown = every("adam_mini_fig20")
    for name in ("lora.gap", "full.gap"):
        assert shown.values[name]["value"] == pytest.approx(0.004, abs=3e-4) and shown.values[name]["n"] == 3
    for name in ("learned.gain", "rule.gain"):
        assert shown.values[name]["value"] == pytest.approx(-0.004, abs=3e-4)
    assert "2.493" in str(shown.rows) and "3.45" in str(shown.rows) and shown.figure is not None
    assert not re.search(r"\bnan\b", json.dumps([shown.rows, shown.values]), re.IGNORECASE)
    assert "llamafactory" in shown.caption and "per byte" in shown.caption


def test_the_table_never_calls_a_number_of_ours_mt_bench(every):
    shown = every("adam_mini_table3")
    place = shown.columns.index("MT-Bench")
    ours = [row for row in shown.rows if "(paper)" not in row[0]]
    assert {row[place] for row in ours} == {"", "not run: no judge"}
    assert [row[place] for row in shown.rows if row[0] == "ReMax, learned reward (paper)"] == ["5.54", "5.68"]
    assert rows_of(shown, "fine-tuning, LoRA (paper)")[0][place] == "4.23 (recalled)"
    assert shown.values["judged.learned"]["value"] is None
    assert any("perplexity per byte" in row[2] for row in ours)


def test_accuracy_on_pairs_has_an_interval_over_pairs(every):
    shown = every("adam_mini_table3")
    found = shown.values["reward.accuracy"]
    assert found["value"] == pytest.approx(60) and found["n"] == 50 and found["low"] < 52 and found["high"] > 68
    assert shown.values["hh.accuracy"]["reason"] == "not run: needs hh_rlhf=hub or hh_rlhf_dir"
    assert rows_of(shown, "reward model on HH-RLHF")[0][4] == "not run: needs hh_rlhf=hub or hh_rlhf_dir"
    assert "3 rows left out" in str(shown.deviations)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("tier", ["smoke", "paper"])
def test_without_records_every_tier_says_so(root, id, tier):
    shown = exhibit.make(root, id, tier)
    assert all(value["value"] is None and value["reason"] for value in shown.values.values())
    assert shown.rows


@pytest.mark.parametrize(("optimizer", "verdict"), [("adam_mini", "opposite_here"), ("adamw", "inconclusive")])
def test_a_diverged_run_of_adam_mini_contradicts_and_of_adamw_decides_nothing(root, optimizer, verdict):
    planned = [run for run in runs_of("sft") if run["variant"].startswith("full-")]
    for run in planned:
        record(root, run, {"val_loss": 2.0}, [])
    lost = next(run for run in planned if run["variant"] == f"full-{optimizer}")
    record(root, lost, {"step": 9}, [], status="diverged", reason="loss is not finite at step 9")
    found = [load_run(root, run) for run in planned]
    value = alignment.gap(alignment.of(found, "sft", "full"), alignment.loss, "nat")
    assert claims.verdict(CLAIMS["adam_mini_sft_full_on_par"], value, "laptop")[0] == verdict


def test_verdicts_follow_the_records(every):
    values = every("adam_mini_fig20").values
    premise = {id: values.get(c.get("gate", {}).get("value")) for id, c in CLAIMS.items()}
    known = {id: c for id, c in CLAIMS.items() if c["value"] in values}
    found = {id: claims.verdict(c, values[c["value"]], "laptop", premise[id])[0] for id, c in known.items()}
    assert found["adam_mini_sft_full_on_par"] == "same_direction"  # 0.004 nat behind, the margin is 0.02
    assert found["adam_mini_sft_lora_better"] == "opposite_here"
    assert found["adam_mini_remax_reward"] == "not_testable"  # 60 % of 50 pairs may be chance
    remax, learned = CLAIMS["adam_mini_remax_reward"], {"value": 80.0, "low": 70.0, "high": 90.0, "n": 50}
    assert claims.verdict(remax, values[remax["value"]], "laptop", learned)[0] == "opposite_here"


def test_scores_of_a_judge_are_read_back_and_compared(full, monkeypatch):
    """Where measure.questions is set and judged.jsonl lies beside each record; -1 marks what it could not judge."""
    config = alignment.OPTIMIZERS
    planned = runs_of("sft")
    for run in planned:
        better = config.index(run["variant"].split("-")[1])
        lines = [
            {"question_id": 81, "score": 5 + better},
            {"question_id": 82, "score": 6},
            {"question_id": 83, "score": -1},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (full / "results/laptop" / run["id"] / "judged.jsonl").write_text(text)
    asked = Run.__init__

    def with_questions(self, *args, **fields):
        if fields.get("experiment") == "sft":
            fields["config"] = {**fields["config"], "measure": {"questions": "question.jsonl"}}
        asked(self, *args, **fields)

    monkeypatch.setattr(Run, "__init__", with_questions)
    shown = exhibit.make(full, "adam_mini_table3", "laptop")
    assert shown.values["judged.full"]["value"] == pytest.approx(0.5) and shown.values["judged.full"]["n"] == 3
    assert rows_of(shown, "fine-tuning, all weights")[1][6].startswith("6.00")
    (full / "results/laptop" / planned[0]["id"] / "judged.jsonl").unlink()
    assert exhibit.make(full, "adam_mini_table3", "laptop").values["judged.full"]["value"] is None


def test_answers_for_a_judge_are_written_and_printed(root, tmp_path, capsys):
    """Two turns each, the second after the model's own answer to the first, in the form of FastChat's llm_judge."""
    from alignment_runs import WORDS, model

    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 81, "turns": ["Write.", "Again."]}) + "\n")
    from lowmem.pipeline.record import write_arrays

    run = runs_of("sft")[0]
    folder = root / "results/laptop" / run["id"]
    settings = {"questions": questions.name, "template": "human", "answer_tokens": 5}
    made = write_arrays(folder, judge.answers(model(), WORDS, judge.asked(tmp_path, settings), settings))
    record(root, run, {}, arrays=made)
    assert main(["records", "answers", str(folder)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["question_id"] == 81 and line["model_id"] == run["id"] and len(line["choices"][0]["turns"]) == 2
    questions.write_text('{"turns": []}\n')
    with pytest.raises(Failed, match=r"question\.jsonl, line 1: no field 'question_id'"):
        judge.asked(tmp_path, settings)
    assert judge.answers(model(), WORDS, judge.asked(tmp_path, {"questions": None}), settings) is None


def test_a_judge_without_a_single_score_is_an_error(tmp_path):
    (tmp_path / "judged.jsonl").write_text('{"question_id": 1, "score": -1}\n')
    with pytest.raises(Failed, match="holds no score of 0 or more"):
        judge.judged(tmp_path)
    assert judge.judged(tmp_path / "nothing") is None
