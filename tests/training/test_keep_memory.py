"""A training process keeps the memory it frees: said in the record, the same numbers, fewer page faults."""

import json
import subprocess
import sys

import pytest
import tiny

from lowmem import cli
from lowmem.cli import commands
from lowmem.optim.core import cpu_kernel
from lowmem.pipeline import estimate, planning
from lowmem.training import job, machine

TRAIN = """
import json, sys
from pathlib import Path
import tiny
from lowmem.training import machine, job
if {keep}:
    machine.keep_memory()
made = job.train_run(Path(sys.argv[1]), tiny.make_run(optimizer=tiny.ADAM_MINI))
print(json.dumps(made["device"]))
"""
FAULTS = """
import resource
import numpy as np
from lowmem.training import machine
if {keep}:
    machine.keep_memory()
for round in range(60):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(size << 17) for size in (1, 2, 3, 4)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")


def printed(code: str, *arguments, **environment) -> str:
    call = [sys.executable, "-c", code, *map(str, arguments)]
    given = {**tiny.environment(), **environment}
    return subprocess.run(call, env=given, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_run_that_keeps_memory_gives_the_same_bits_and_its_record_says_so(tmp_path):
    plain, keeping = (tiny.make_root(tmp_path / name) for name in ("plain", "keeping"))
    without, said = (json.loads(printed(TRAIN.format(keep=keep), root)) for keep, root in ((0, plain), (1, keeping)))
    assert without["allocator"] is None and said["allocator"][machine.HUGE_PAGES] == "1"
    assert tiny.differences(plain, keeping, tiny.make_run()) == []


@needs_glibc
def test_freed_memory_does_not_return_as_page_faults():
    without, keeping = (int(printed(FAULTS.format(keep=keep))) for keep in (0, 1))
    assert keeping < without / 10


def test_what_the_environment_sets_stays(tmp_path):
    own = {"MALLOC_TOP_PAD_": "1000000", machine.HUGE_PAGES: "0"}
    said = json.loads(printed(TRAIN.format(keep=1), tiny.make_root(tmp_path), **own))["allocator"]
    assert {name: said[name] for name in own} == own


def test_a_process_that_uses_pytorch_already_is_left_as_it_is():
    assert "torch" in sys.modules
    machine.keep_memory()
    assert machine.describe("cpu")["allocator"] is None


@pytest.mark.parametrize(("configs", "kept"), [([{"train": {}}], 1), ([{"measure": {}}], 0), ([{"train": {}}, {}], 0)])
def test_the_command_keeps_memory_for_training_and_not_where_memory_is_measured(configs, kept, tmp_path, monkeypatch):
    runs, calls = [{**tiny.make_run(str(k)), "config": config} for k, config in enumerate(configs)], []
    monkeypatch.setattr(planning, "select", lambda *arguments: runs)
    monkeypatch.setattr(commands, "options", lambda *arguments: {})
    monkeypatch.setattr(machine, "keep_memory", lambda: calls.append(1))
    monkeypatch.setattr(job, "run_job", lambda root, given: 1)
    monkeypatch.setattr(estimate, "opening", lambda *arguments: "")
    assert commands.train(tmp_path, cli.parser().parse_args(["train", "--experiment", "any", "--tier", "smoke"])) == 1
    assert len(calls) == kept


def test_a_record_names_the_kernel_that_computed(tmp_path):
    root = tiny.make_root(tmp_path)

    def said(**optimizer):
        return job.train_run(root, tiny.make_run(optimizer=optimizer, steps=2))["device"]["step_kernel"]

    words = "C, " if cpu_kernel.library() else "None"
    for name in ({"name": "adamw"}, tiny.ADAM_MINI, {**tiny.ADAM_MINI, "backward": {}}):
        assert str(said(**{"lr": 0.01, **name})).startswith(words)
    assert said(**tiny.LOMO) is None
