"""Records: what they hold, when two are equal, and what exhibits read off a run."""

import json
import math
import shutil
import subprocess

import pytest
from tiny import curve, make_root, make_run, twin

from lowmem import provenance, record, train
from lowmem.errors import Misuse


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def test_equal_names_each_difference_and_accepts_trees(root, tmp_path):
    run = make_run(steps=3)
    train.train_run(root, run)
    other = tmp_path / "copy"
    shutil.copytree(root / "results", other)
    assert record.equal(root / "results", other) == []
    folder = other / "smoke" / run["id"]
    rows = (folder / "curve.jsonl").read_text().splitlines()
    row = json.loads(rows[2])
    row["train_loss"] = math.nextafter(row["train_loss"], 9.0)
    (folder / "curve.jsonl").write_text("\n".join([*rows[:2], json.dumps(row), *rows[3:]]) + "\n")
    loaded = record.write(folder, {**record.load(folder), "curve": None})
    assert (
        len(record.equal(root / "results", other)) == 1 and "curve line 3" in record.equal(root / "results", other)[0]
    )
    record.write(folder, {**loaded, "status": "diverged", "started": "other", "memory": None})
    assert any("status" in line for line in record.equal(root / "results", other))
    (folder / "record.json").unlink()
    assert any("only in" in line for line in record.equal(root / "results", other))
    with pytest.raises(Misuse, match=r"no.* record"):
        record.equal(tmp_path / "a", tmp_path / "b")


def test_dirty_looks_at_code_only(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert provenance.commit(tmp_path)["dirty"] is False and len(provenance.commit(tmp_path)["commit"]) == 40
    (tmp_path / "notes.md").write_text("2")
    assert provenance.commit(tmp_path)["dirty"] is False
    (tmp_path / "src" / "x.py").write_text("3")
    assert provenance.commit(tmp_path)["dirty"] is True


def test_sketches_are_written_at_evaluations_and_change_nothing_else(root, tmp_path):
    other = twin(root, tmp_path)
    plain, sketched = make_run(), make_run()
    sketched["config"]["train"]["sketch"] = 8
    train.run_job(root, [plain])
    train.run_job(other, [sketched])
    rows, sketches = curve(root, plain), curve(other, sketched)
    assert [len(row["sketch"]) for row in sketches if "sketch" in row] == [8] * sum(
        "val_loss" in row for row in rows[1:]
    )
    assert [row.get("val_loss") for row in rows] == [row.get("val_loss") for row in sketches]


def test_the_share_of_time_in_training_steps_is_recorded_and_said(root, capsys):
    run = make_run()
    train.run_job(root, [run])
    speed = json.loads((record.folder(root, run) / "record.json").read_text())["throughput"]
    assert 0 < speed["steps_s"] < speed["run_s"]
    assert "of it in training steps" in capsys.readouterr().err
