"""The protocol of the SuperGLUE runs on files of the official form, 32 questions for each task."""

import json

import checkout
import pytest
import yaml
from questions import OFFICIAL, TINY

from lowmem.data import fetch, prepare, superglue_sources
from lowmem.pipeline import experiments, planning
from lowmem.training import job


def many(name, count=32):
    """`count` official rows of a task, half of each answer, in words of our own."""
    first, _ = OFFICIAL[name]
    labels = {"RTE": ("entailment", "not_entailment"), "COPA": (0, 1)}.get(name, (True, False))
    for k in range(count):
        row = json.loads(json.dumps(first).replace("Tom", f"Tom{k}").replace("It ", f"It, day {k}, "))
        yield {**row, "label": labels[k % 2]} if "label" in row else row  # MultiRC's labels belong to its answers


@pytest.fixture
def files(tmp_path):
    """A folder with train.jsonl and val.jsonl of all six tasks, 32 questions each."""
    for name in OFFICIAL:
        place = tmp_path / "official" / name
        place.mkdir(parents=True)
        for split in ("train", "val"):
            (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many(name)))
    return tmp_path / "official"


def test_files_of_the_official_form_run_the_whole_protocol_with_all_methods(tmp_path, files, monkeypatch):
    """Tier overnight on files in a folder, but for the model, which is tiny, and the steps, which are two."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    project = checkout.copy(tmp_path / "project")
    defaults = yaml.safe_load((project / "workflow/config/config.yaml").read_text())
    _, options = planning.settings(project, {**defaults, "tier": "overnight", "superglue_dir": str(files)})
    for task_, folder in superglue_sources.OFFICIAL.items():
        fetch.fetch(project, f"superglue_{task_}", "folder", folder=files / folder)
        prepare.prepare(project, f"superglue_{task_}", "folder")
    planned = experiments.runs(project, "superglue", "overnight", options)
    zeros = [run for run in planned if run["variant"].endswith("-zero")]
    runs = zeros + [run for run in planned if run not in zeros and run["seed"] == 0]  # of the task that is trained
    assert len(zeros) == 6 and len(runs) == 6 + 13
    for run in runs:
        model = {**TINY, **{key: value for key, value in run["config"]["model"].items() if key in ("dtype", "adapter")}}
        size = {
            **run["config"]["train"],
            "steps": 2 * bool(run["config"]["train"]["steps"]),
            "eval_every": 2,
            "seq_len": 256,
        }
        run["config"] = {**run["config"], "model": model, "train": size}
        run.pop("waits", None)  # two steps show that it runs; they judge nothing, so the rate may be a stand-in
    assert job.run_job(project, runs) == 0
    for run in runs:
        final = json.loads((project / "results/overnight" / run["id"] / "record.json").read_text())["metrics"]["final"]
        asked = 64 if run["variant"].startswith("multirc") else 32  # two answers to each question
        assert final["questions"] == asked and {"accuracy", "most", "choice_loss", "auc", "val_loss"} <= final.keys()
        assert final["most"] == 50.0, run["id"]
