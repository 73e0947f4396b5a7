"""A run says how busy others kept its cores, and its times say so where that matters."""

import subprocess
import sys
import time

import pytest
from tiny import make_root, make_run

from lowmem import progress
from lowmem.pipeline import load
from lowmem.training import job

TIMED = {"throughput": {"tokens_per_s": 9.0}, "device": {"threads": 2}, "config": {}}


def test_work_of_this_process_is_its_own_and_work_of_another_is_not(monkeypatch):
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {1}, raising=False)
    monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
    clock, own, text = iter((10.0, 20.0)), iter((1.0, 4.0)), ["cpu 9 9 9 9\n", "cpu0 900 0 0 0 0 0 0 0 0 0\n"]
    monkeypatch.setattr(load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load.os, "times", lambda: (next(own), 0.0, 0.0, 0.0, 0.0))
    places = iter(["cpu1 100 0 0 5000 0 0 0 0 0 0\n", "cpu1 500 100 100 9000 700 50 50 100 0 0\n"])
    monkeypatch.setattr(type(load.STAT), "read_text", lambda _: "".join(text) + next(places))
    # 900 ticks in 10 s, waiting for disks not among them: 0.8 cores, 0.3 of it this process's
    assert load.since(load.start()) == {"cores": 1, "own": 0.3, "others": 0.5}


def test_another_busy_process_is_seen_where_the_system_tells():
    before = load.start()
    assert (before is None) == (not load.STAT.exists())
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1.5)
    busy.kill()
    busy.wait()
    found = load.since(before) if before else None
    assert found is None if before is None else found["cores"] >= 1 and found["own"] + found["others"] > 0.3


def test_without_a_system_that_tells_and_within_half_a_second_nothing_is_said(monkeypatch, tmp_path):
    assert load.since({"at": time.monotonic(), "cores": 1, "busy": 0.0, "own": 0.0}) is None
    monkeypatch.setattr(load, "STAT", tmp_path / "nothing")
    assert load.start() is None


@pytest.mark.parametrize(
    ("others", "threads", "said"),
    [(1.7, 2, True), (0.1, 2, False), (1.1, 1, False), (1.6, 1, True), (0.9, 8, True)],
)
def test_only_cores_that_the_run_asked_for_are_missed(others, threads, said):
    made = {**TIMED, "device": {"threads": threads}, "load": {"cores": 2, "own": 0.3, "others": others}}
    text = f"busy machine: others used {others:.1f} of 2 cores"
    assert progress.busy_cores(made) == (text if said else None)
    assert progress.busy_cores({**made, "throughput": None}) is None  # nothing was timed
    rounds = {**made, "throughput": None, "config": {"measure": {"rounds": 6}}}
    assert progress.busy_cores(rounds) == progress.busy_cores(made)
    assert progress.busy_cores({**made, "load": None}) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_of_a_run_ends_with_what_came_of_it(tmp_path, monkeypatch, rank):
    """Rank 0 writes the record, the others print their line from what they know."""
    monkeypatch.setattr(job.distributed, "rank", lambda: rank)
    made = job.train_run(make_root(tmp_path), make_run(steps=2))
    assert made["status"] == "done" and (made["load"] or {}).keys() in (set(), {"cores", "own", "others"})
    assert progress.summary(made).startswith("train_loss")
