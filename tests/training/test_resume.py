"""Interrupted runs: an equal record after any kill, and checkpoints that survive one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from breaking import flipped
from campaign_counts import hold
from tiny import ADAM_MINI, LOMO, curve, differences, environment, make_root, make_run, twin

from lowmem import kept_files, provenance
from lowmem.errors import Failed
from lowmem.files import sha256
from lowmem.optim.core import cpu_kernel
from lowmem.pipeline import record
from lowmem.training import checkpoint, job, loop


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def child(root, run):
    """Train one run in a process of its own."""
    file = root / "run.json"
    file.write_text(json.dumps([run]))
    script = Path(tiny.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(file)], env=environment(), stderr=subprocess.PIPE
    )


def wait_for_line(root, run, number, process):
    path = record.folder(root, run) / "curve.jsonl"
    for _ in range(12000):
        if path.is_file() and path.read_bytes().count(b"\n") >= number:
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    raise AssertionError("the child did not get there in two minutes")


@pytest.mark.parametrize(
    "how, optimizer", [(signal.SIGKILL, ADAM_MINI), (signal.SIGTERM, None), (signal.SIGKILL, LOMO)]
)
def test_an_interrupted_and_resumed_run_gives_an_equal_record(root, tmp_path, how, optimizer):
    run = make_run(steps=120, checkpoint_every=7, optimizer=optimizer, model={"dropout": 0.1}, eval_every=30)
    at = random.randrange(9, 80)
    print("interrupting near step", at)
    process = child(root, run)
    try:
        wait_for_line(root, run, at, process)
        process.send_signal(how)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.stderr.close()
    assert code == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    assert not (record.folder(root, run) / "record.json").exists()
    made = job.train_run(root, run)
    assert made["status"] == "done" and len(made["resumed_from"]) == 1
    resumed = made["resumed_from"][0]  # step at - 1 was written, its checkpoint perhaps not yet
    assert resumed >= at - 8 and (how == signal.SIGTERM or resumed % 7 == 0)
    other = twin(root, tmp_path)
    assert job.train_run(other, run)["resumed_from"] == []
    assert differences(root, other, run) == []


def stop_at(step, monkeypatch):
    """Make the next run end as if killed after a step, right after its line is written."""
    original = loop.Loop.write

    def write(self, curve, number, **columns):
        original(self, curve, number, **columns)
        if number == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "write", write)


def interrupted(root, run, step, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            job.train_run(root, run)


def test_two_interruptions_are_both_recorded_and_change_nothing(root, tmp_path, monkeypatch):
    run = make_run(checkpoint_every=3, model={"dropout": 0.1})
    interrupted(root, run, 8, monkeypatch)
    interrupted(root, run, 17, monkeypatch)
    made = job.train_run(root, run)
    assert made["resumed_from"] == [6, 15]
    other = twin(root, tmp_path)
    job.train_run(other, run)
    assert differences(root, other, run) == []


def test_a_full_disk_at_a_checkpoint_is_one_line_and_the_earlier_one_still_loads(root, tmp_path, monkeypatch):
    run = make_run(checkpoint_every=5)

    def full(state, file):
        if state["notes"]["step"] > 5:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        return real(state, file)

    real = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        made = job.train_run(root, run)
    assert made["status"] == "failed" and "No space left" in made["reason"] and "\n" not in made["reason"]
    path = checkpoint.place(record.folder(root, run), run["config_hash"])
    assert sorted(file.name for file in path.iterdir()) == ["step5.pt", "step5.pt.sha256"]
    assert job.train_run(root, run)["resumed_from"] == [5]
    other = twin(root, tmp_path)
    job.train_run(other, run)
    assert differences(root, other, run) == []


def test_torch_write_errors_become_one_line(tmp_path, monkeypatch):
    def broken(state, file):
        raise RuntimeError("PytorchStreamWriter failed writing file\nmore lines")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(Failed, match="failed writing file; free space") as caught:
        checkpoint.save(tmp_path / "c", 1, {})
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path):
    checkpoint.save(tmp_path, 1, {"kept": {"step": 1}})
    (tmp_path / "step2.pt").write_bytes((tmp_path / "step1.pt").read_bytes()[:100])
    (tmp_path / "step3 copy.pt").write_bytes(b"")
    (tmp_path / ".step3.pt.x.tmp").write_bytes(b"")
    assert checkpoint.load(tmp_path) == {"kept": {"step": 1}}
    checkpoint.save(tmp_path, 4, {"kept": {"step": 4}})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step4.pt", "step4.pt.sha256"]


def test_a_checkpoint_runs_no_code_when_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"kept": Evil()}, tmp_path / "step1.pt")
    kept_files.write_seal(tmp_path / "step1.pt", {"step1.pt": sha256(tmp_path / "step1.pt")})
    assert checkpoint.load(tmp_path) is None and not (tmp_path / "ran").exists()


def test_a_checkpoint_of_other_code_is_not_continued(root, monkeypatch):
    run = make_run(checkpoint_every=3)
    interrupted(root, run, 8, monkeypatch)
    real = provenance.code_hash
    monkeypatch.setattr(provenance, "code_hash", lambda path: "tree:0" if path.name == "gpt2.py" else real(path))
    assert job.train_run(root, run)["resumed_from"] == []


def test_a_curve_shorter_than_its_checkpoint_says_starts_over(root, monkeypatch):
    run = make_run(checkpoint_every=3)
    interrupted(root, run, 8, monkeypatch)
    (record.folder(root, run) / "curve.jsonl").write_text("")
    made = job.train_run(root, run)
    assert made["resumed_from"] == [] and [row["step"] for row in curve(root, run)] == list(range(21))


@pytest.mark.parametrize("how", ["a line changed", "two lines swapped", "a line twice", "zeros"])
def test_a_curve_that_was_altered_since_its_checkpoint_starts_over(root, tmp_path, monkeypatch, how):
    run = make_run(checkpoint_every=3)
    interrupted(root, run, 8, monkeypatch)
    path = record.folder(root, run) / "curve.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    altered = {
        "a line changed": [*lines[:2], lines[2].replace(b"1", b"2"), *lines[3:]],
        "two lines swapped": [lines[1], lines[0], *lines[2:]],
        "a line twice": [lines[0], *lines],
        "zeros": [bytes(sum(map(len, lines)))],
    }
    path.write_bytes(b"".join(altered[how]))
    assert job.train_run(root, run)["resumed_from"] == []
    other = twin(root, tmp_path)
    job.train_run(other, run)
    assert differences(root, other, run) == []


def test_no_bit_of_a_checkpoint_can_flip_without_starting_over(tmp_path):
    checkpoint.save(tmp_path, 1, {"weights": torch.arange(50.0), "notes": {"step": 1}})
    path, chance = tmp_path / "step1.pt", random.Random(0)
    whole = path.read_bytes()
    for _ in range(400):
        at = chance.randrange(8 * len(whole))
        path.write_bytes(flipped(whole, at))
        assert checkpoint.load(tmp_path) is None
    path.write_bytes(whole)
    assert checkpoint.load(tmp_path)["notes"] == {"step": 1}
    hold("checkpoint bits", "one flipped bit in a checkpoint", {"bits": 400}, "none is trained on")


def test_a_run_that_goes_on_by_other_means_says_so_in_its_record(root, monkeypatch, capsys):
    run = make_run(checkpoint_every=3)
    interrupted(root, run, 8, monkeypatch)
    monkeypatch.setattr(cpu_kernel, "library", lambda: None)
    made = job.train_run(root, run)
    assert made["device"]["step_kernel"] is None
    [told] = made["other_means"]
    assert told["step"] == 6 and told["kernel"][0].startswith("C, ") and told["kernel"][1] is None
    assert "computed by other means" in capsys.readouterr().err
