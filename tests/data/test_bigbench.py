"""BIG-bench's package: asked for or never touched, read as the two tasks that it holds, and nothing else taken for them."""

import importlib.util
import json

import pytest
import yaml
from archive_bytes import tar_bytes
from bigbench_tasks import multirc, winowhy

from lowmem.data import superglue_sources
from lowmem.errors import Failed, Misuse
from lowmem.finetuning import superglue_prompts
from lowmem.pipeline import experiments, planning
from lowmem.reporting.numbers.superglue import asked
from lowmem.reporting.runs import Outcome, Run

ROOT = experiments.find_root()
FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks"
ASKING = "winowhy/task.json"
READING = "natural_instructions/subtask058_multirc_question_answering/task.json"


def packed(folder, asking=None, reading=None):
    """The package with these two files, and one that is not asked for."""
    found = {ASKING: asking or winowhy(), READING: reading or multirc(), "other/task.json": {"examples": 3}}
    texts = {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in found.items()}
    folder.mkdir(exist_ok=True)
    whole = tar_bytes({f"{FOLDER}/{name}": text for name, text in texts.items()})
    (folder / "bigbench-1.0.0.tar.gz").write_bytes(whole)
    return folder


def read(raw):
    spec = importlib.util.spec_from_file_location("bigbench_files", ROOT / "data/bigbench/prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = {name: stream.read().decode() for name, stream in script.files(raw)}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in found.items() if "jsonl" in name}
    return rows, found


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_pronoun_is_asked_about_with_its_own_name_and_that_of_the_twin(tmp_path):
    rows, _ = read(packed(tmp_path / "raw"))
    found = [row for split in ("train", "val") for row in rows[f"wsc.{split}.jsonl"]]
    assert len(found) == 4 * 24 and sum(row["label"] for row in found) == 2 * 24
    big = {
        (row["span1_text"], row["label"])
        for row in found
        if row["text"].startswith("Box number 3 ") and "big" in row["text"]
    }
    assert big == {("Box number 3", 1), ("shelf", 0)}  # spelt as the sentence does
    assert all(row["text"].endswith(("big.", "small.")) for row in found)
    asking = superglue_prompts.question("wsc", found[0])
    assert f'"it" refer to "{found[0]["span1_text"]}"' in asking.source and asking.options == (" No", " Yes")


def test_each_lettered_answer_becomes_a_question_of_multirc(tmp_path):
    rows, _ = read(packed(tmp_path / "raw"))
    found = [row for split in ("train", "val") for row in rows[f"multirc.{split}.jsonl"]]
    assert len(found) == 3 * 24
    of_one = {
        (row["answer"], row["label"]) for row in found if row["paragraph"] == "Tom has 3 pears. He ate one (or two)."
    }
    assert of_one == {("Tom", 1), ("Jim", 0), ("Tom did", 1)}
    assert "Who ate?" in superglue_prompts.question("multirc", found[0]).source


def test_no_sentence_and_no_paragraph_is_in_both_splits_and_the_canary_stays_with_them(tmp_path):
    rows, found = read(packed(tmp_path / "raw"))
    for name, key in (("wsc", lambda row: row["text"].split(" hardly")[0]), ("multirc", lambda row: row["paragraph"])):
        train, val = ({key(row) for row in rows[f"{name}.{split}.jsonl"]} for split in ("train", "val"))
        assert train and val and not train & val
    assert found["canary.txt"] == "GUID 1\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"asking": b"{ cut"}, "damaged"),
        ({"asking": b"[1]"}, "task.json of winowhy is not in the form"),
        ({"asking": {"examples": [{"input": "no pronoun"}]}}, "example 1 names no pronoun"),
        ({"asking": winowhy(pairs=1)}, "holds too few questions"),
        (
            {"reading": {"examples": [{"input": 3}]}},
            "task.json of subtask058_multirc_question_answering is not in the form",
        ),
        (
            {"reading": multirc(input="Paragraph- a \nQuestion: b (A) c (B) d.", target=["C."])},
            "example 25 is not a question",
        ),
        ({"reading": multirc(target=["A."])}, "example 25 is not a question"),
    ],
)
def test_what_is_no_package_of_this_form_is_refused_in_one_line(tmp_path, change, told):
    with pytest.raises(Failed, match=told) as caught:
        read(packed(tmp_path / "raw", **change))
    assert "\n" not in str(caught.value)


def test_a_package_without_the_task_or_cut_off_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar_bytes({f"{FOLDER}/{ASKING}": json.dumps(winowhy()).encode()}))
    with pytest.raises(Failed, match=r"nothing in .* matches .*subtask058"):
        read(tmp_path)
    whole = (packed(tmp_path / "raw") / "bigbench-1.0.0.tar.gz").read_bytes()
    (tmp_path / "raw/bigbench-1.0.0.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failed, match="damaged"):
        read(tmp_path / "raw")


# -- when it is read ---------------------------------------------------------------------------------------------------


def settings(tier, **changes):
    defaults = yaml.safe_load((ROOT / "workflow/config/config.yaml").read_text())
    return planning.settings(ROOT, {**defaults, "tier": tier, **changes})[1]


def used(tier, options):
    """{task: (dataset, part)} of the runs of the SuperGLUE table."""
    runs = experiments.runs(ROOT, "superglue", tier, options)
    return {
        run["variant"].split("-")[0]: (run["config"]["data"]["dataset"], run["config"]["data"].get("part"))
        for run in runs
    }


@pytest.mark.parametrize("tier", experiments.tier_names(ROOT))
@pytest.mark.parametrize("value", [False, "false"])
def test_nothing_of_it_is_fetched_unless_asked_for(tier, value):
    options = settings(tier, bigbench=value)
    jobs = planning.jobs(ROOT, tier, options, ["superglue", "lora_lomo"])
    assert jobs and not any("bigbench" in data["dataset"] for data in planning.datasets(jobs).values())


@pytest.mark.parametrize("tier", ["smoke", "laptop", "workstation"])
@pytest.mark.parametrize("value", [True, "true"])
def test_asked_for_it_brings_two_tasks_says_the_request_and_changes_no_other_run(tier, value, capsys):
    before = used(tier, settings(tier))
    options = settings(tier, bigbench=value)
    assert superglue_sources.REQUEST in capsys.readouterr().err
    after = used(tier, options)
    assert {task: after[task] for task in superglue_sources.IN_BIGBENCH} == {
        "wsc": ("bigbench", "wsc"),
        "multirc": ("bigbench", "multirc"),
    }
    assert {k: v for k, v in after.items() if k not in superglue_sources.IN_BIGBENCH} == {
        k: v for k, v in before.items() if k not in superglue_sources.IN_BIGBENCH
    }
    job = next(
        job for job in planning.jobs(ROOT, tier, options, ["superglue"]).values() if "bigbench" in job["arguments"]
    )
    assert "--option bigbench=package" in job["arguments"]


@pytest.mark.parametrize("tier", ["smoke", "laptop"])
def test_each_job_finds_its_own_runs_and_no_stand_in_that_an_option_replaced(tier):
    options = {"bigbench": "package", "superglue_wic": "folder", "superglue_boolq": "hub"}
    for job in planning.jobs(ROOT, tier, options, ["superglue", "lora_lomo"]).values():
        words = job["arguments"].split()
        told = dict(words[k + 1].split("=") for k, word in enumerate(words) if word == "--option")
        part = words[words.index("--dataset") + 1] if "--dataset" in words else None
        assert planning.select(ROOT, job["experiment"], tier, told, dataset=part) == job["runs"]


def test_real_tasks_win_over_it(capsys):
    options = settings("laptop", bigbench=True, superglue="hub")
    assert used("laptop", options)["wsc"] == ("superglue_wsc", None) and "bigbench" not in options
    assert "bigbench is not used" in capsys.readouterr().err


def test_the_published_tier_and_other_words_are_refused():
    with pytest.raises(Misuse, match="tier paper runs the published tasks alone"):
        settings("paper", bigbench=True)
    with pytest.raises(Misuse, match="bigbench: 'yes' is not one of"):
        settings("laptop", bigbench="yes")


@pytest.mark.parametrize("part", superglue_sources.IN_BIGBENCH)
def test_its_questions_do_not_carry_the_name_of_the_task(part):
    run = Run("a", "superglue", f"{part}-zero", 0, {"data": {"dataset": "bigbench", "part": part}}, Outcome("done"))
    task, name = asked(run)
    assert task == part and "BIG-bench" in name and "(for " in name


def test_switches_are_booleans_however_a_command_line_spells_them():
    assert planning.parse_booleans({"redraw": "true", "bigbench": "false", "tier": "laptop", "fetch_retries": 2}) == {
        "redraw": True,
        "bigbench": False,
        "tier": "laptop",
        "fetch_retries": 2,
    }
