"""Instructions and pairs: four forms become flat rows; what is left out is counted, what is wrong is one line."""

import gzip
import json

import pytest
import yaml
from superglue_script import script
from user_files import ROOT

from lowmem.data import fetch, prepare
from lowmem.errors import Failed, Misuse
from lowmem.pipeline import experiments, planning

PAIR = {"turns": [["user", "Why?"]], "chosen": "Because.", "rejected": "No."}


def said(role, text):
    return {"role": role, "content": text}


ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": " 3 "}
FACTORY = {
    "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "Because."},
    "rejected": {"from": "gpt", "value": "No."},
}
FEEDBACK = {
    "prompt": "Why?",
    "chosen": [said("user", "Why?"), said("assistant", "Because.")],
    "rejected": [said("user", "Why?"), said("assistant", "No.")],
}
HUMAN = {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}


def flat(row):
    return script("dialogues").flat(row)


def made(folder):
    """{file: rows} that the script makes of a raw folder, and what it left out."""
    found = {name: stream.read().decode() for name, stream in script("dialogues").files(folder)}
    excluded = json.loads(found.pop("excluded.json"))
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in found.items()}, excluded


def asking(k, form=FEEDBACK):
    """A row of the same form about another question."""
    return json.loads(json.dumps(form).replace("Why?", f"Why {k}?").replace("Add.", f"Add {k}."))


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def test_four_forms_become_flat_rows():
    assert flat(ALPACA) == {"turns": [["user", "Add.\n\n1 and 2"]], "answer": "3"}
    assert flat(FEEDBACK) == flat(HUMAN) == PAIR
    assert flat(FACTORY) == {**PAIR, "turns": [["system", "Be brief."], ["user", "Why?"]]}
    long = {key: "\n\nHuman: Hi\n\nAssistant: Hello" + text for key, text in HUMAN.items()}
    assert flat(long)["turns"] == [["user", "Hi"], ["assistant", "Hello"], ["user", "Why?"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ALPACA, "output": " "}, "empty"),
        ({**ALPACA, "instruction": "", "input": ""}, "empty"),
        ({**FACTORY, "rejected": {"from": "gpt", "value": ""}}, "empty"),
        ({**HUMAN, "chosen": "\n\nHuman: Why?\n\nAssistant:"}, "empty"),
        ({**HUMAN, "rejected": HUMAN["chosen"]}, "equal"),
        ({**HUMAN, "rejected": "\n\nHuman: Who?\n\nAssistant: No."}, "two questions"),
    ],
)
def test_what_cannot_be_learned_from_is_left_out_with_its_reason(row, reason):
    assert flat(row) == reason


def test_left_out_rows_are_counted(tmp_path):
    rows = [asking(k) for k in range(40)]
    write(tmp_path, "train.jsonl", [*rows, {**HUMAN, "rejected": HUMAN["chosen"]}, {**ALPACA, "output": ""}])
    write(tmp_path, "test.jsonl", [asking(k) for k in range(40, 45)])
    found, excluded = made(tmp_path)
    assert excluded == {"empty": 1, "equal": 1, "two questions": 0}
    assert sum(len(rows) for name, rows in found.items() if "train" in name) == 40
    assert len(found["pairs.val.jsonl"]) == len(found["instructions.val.jsonl"]) == 5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a"}, "no field 'output'"),
        ({"chosen": "x"}, "no field 'rejected'"),
        ({"chosen": "x", "rejected": "y"}, "the last turn is not the assistant's"),
        ({"prompt": "a"}, "no field 'chosen'"),
        ({**FEEDBACK, "chosen": [said("user", "Why?")]}, "the last turn is not the assistant's"),
        (["a"], "TypeError"),
        ({**ALPACA, "output": None}, "AttributeError"),
    ],
)
def test_a_row_of_no_form_is_named(tmp_path, row, words):
    write(tmp_path, "rows.jsonl", [asking(0), row])
    with pytest.raises(Failed, match=r"^rows\.jsonl, row 2: neither an instruction nor a pair \(") as told:
        made(tmp_path)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(Failed, match=r"train\.jsonl\.gz is damaged"):
        made(tmp_path)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b"{"))
    with pytest.raises(Failed, match=r"train\.jsonl\.gz is not JSON"):
        made(tmp_path)
    (tmp_path / "train.jsonl.gz").unlink()
    with pytest.raises(Failed, match="holds no instruction and no pair"):
        made(tmp_path)


@pytest.mark.parametrize("name", ["rows.json", "test.jsonl.gz"])
def test_without_a_held_out_part_no_question_is_on_two_sides(tmp_path, name):
    write(tmp_path, name, [asking(k // 2) for k in range(200)])  # every question twice
    found, _ = made(tmp_path)
    asked = {name: {json.dumps(row["turns"]) for row in rows} for name, rows in found.items()}
    learned, kept = asked["instructions.train.jsonl"], asked["pairs.train.jsonl"]
    held_out = asked["pairs.val.jsonl"]
    assert learned.isdisjoint(kept) and (learned | kept).isdisjoint(held_out) and len(learned | kept | held_out) == 100
    assert 0.1 < len(held_out) / 100 < 0.3 and 0.25 < len(learned) / len(learned | kept) < 0.55  # a fifth, and 4:6


def test_instructions_beside_pairs_stay_what_they_are(tmp_path):
    write(tmp_path, "alpaca_en_demo.json", [asking(k, ALPACA) for k in range(30)])
    write(tmp_path, "dpo_en_demo.json", [asking(k, FACTORY) for k in range(30)])
    found, _ = made(tmp_path)
    assert sum(len(rows) for name, rows in found.items() if name.startswith("instructions")) == 30
    assert sum(len(rows) for name, rows in found.items() if name.startswith("pairs")) == 30


@pytest.mark.parametrize(("name", "form"), [("ultrafeedback", FEEDBACK), ("alpaca", ALPACA), ("hh_rlhf", HUMAN)])
def test_the_hubs_files_in_a_folder_are_prepared(tmp_path, monkeypatch, name, form):
    """The sources of data/sources.yaml, with a local folder of the hub's layout in place of the repository."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    entry = yaml.safe_load((ROOT / "data/sources.yaml").read_text())[name]
    [source] = entry["sources"]
    for k, split in enumerate(wanted["split"] for wanted in source["splits"].values()):
        write(tmp_path / "hub", f"{split}.jsonl", [asking(f"{k} {n}", form) for n in range(40)])
    files = {wanted["split"]: f"{wanted['split']}.jsonl" for wanted in source["splits"].values()}
    listed = [{"split": split, "path": path} for split, path in files.items()]
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": listed}]})
    (tmp_path / "hub/README.md").write_text(f"---\n{card}---\n")
    root = tmp_path / "root"
    (root / "data/dialogues").mkdir(parents=True)
    (root / "data/dialogues/prepare.py").write_text((ROOT / "data/dialogues/prepare.py").read_text())
    source |= {"hub": str(tmp_path / "hub"), "config": None}
    (root / "data/sources.yaml").write_text(yaml.safe_dump({name: entry}))
    fetch.fetch(root, name, "hub")
    folder = prepare.prepare(root, name, "hub")
    part = "instructions" if name == "alpaca" else "pairs"
    rows = [json.loads(line) for line in (folder / f"{part}.train.jsonl").read_text().splitlines()]
    assert rows and all(row["turns"][0][1].startswith(("Why", "Add")) for row in rows)


def test_a_folder_of_hh_rlhf_becomes_a_run_of_its_own(tmp_path):
    write(tmp_path, "test.jsonl.gz", [asking(k, HUMAN) for k in range(50)])
    defaults = yaml.safe_load((ROOT / "workflow/config/config.yaml").read_text())
    _, options = planning.settings(ROOT, {**defaults, "tier": "laptop", "hh_rlhf_dir": str(tmp_path)})
    runs = experiments.runs(ROOT, "reward", "laptop", options)
    assert {(run["variant"], run["config"]["data"]["dataset"]) for run in runs if "hh" in run["variant"]} == {
        ("hh-adamw", "hh_rlhf"),
        ("hh-adam_mini", "hh_rlhf"),
    }
    assert len(runs) == 12 and len(experiments.runs(ROOT, "reward", "laptop")) == 6
    with pytest.raises(Misuse, match="is not a folder"):
        planning.settings(ROOT, {**defaults, "tier": "laptop", "hh_rlhf_dir": str(tmp_path / "nothing")})
