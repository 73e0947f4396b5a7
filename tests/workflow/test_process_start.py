"""What a process must not load: each import below costs every run seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIMIZE = """
import sys, torch
from lowmem import optim
model = torch.nn.Linear(4, 4)
for name in optim.names():
    optimizer = optim.make(model, name=name, lr=0.1)
    if hasattr(optimizer, "backward"):
        optimizer.backward(model(torch.ones(2, 4)).sum())
    else:
        model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    if hasattr(optimizer, "close"):
        optimizer.close()
"""
PLAN = "from lowmem.reporting import claims; from lowmem.pipeline import planning"
EXHIBITS = """
import importlib
from lowmem.pipeline import planning
from lowmem.pipeline.experiments import find_root
chosen = [id for id, header in planning.exhibits(find_root()).items() if header["kind"] == {kind!r}]
for id in chosen:
    importlib.import_module("lowmem.exhibits." + id)
assert len(chosen) > 15
"""
TABLES, FIGURES = (EXHIBITS.format(kind=kind) for kind in ("table", "figure"))
NUMPY_RUN = """
import json, sys, tempfile
from pathlib import Path
from lowmem.training import job
config = {"task": "quadratic", "measure": {"blocks": {"a": {"values": [1, 2]}}, "size": 4, "horizons": [3]}}
run = {"experiment": "e", "variant": "v", "seed": 0, "tier": "own", "id": "e/v/seed0", "config": config}
run |= {"config_hash": "0" * 16, "resources": {"threads": 1, "gpus": 0}}
with tempfile.TemporaryDirectory() as folder:
    assert job.run_job(Path(folder), [run]) == 0
    made = json.loads(next(Path(folder).rglob("record.json")).read_text())
assert made["status"] == "done" and made["device"]["type"] == "cpu", made
"""
LATE = """
import types
task = types.ModuleType("lowmem.tasks.quadratic")
task.measure = lambda config, seed, root: {"metrics": {"final": {"one": __import__("torch").ones(1).item()}}}
import sys
sys.modules["lowmem.tasks.quadratic"] = task
""" + NUMPY_RUN.replace(") == 0", ") == 1").replace('made["status"] == "done"', '"first imported" in made["reason"]')


@pytest.mark.parametrize(
    ("does", "unwanted"),
    [
        (OPTIMIZE, "torch._dynamo"),
        (PLAN, "torch"),
        (PLAN, "numpy"),
        (TABLES, "torch"),
        (TABLES, "matplotlib"),
        (FIGURES, "torch"),
        (FIGURES, "matplotlib.pyplot"),
        (NUMPY_RUN, "torch"),
    ],
)
def test_a_process_does_not_load_what_it_does_not_need(does, unwanted):
    assert printed(f"{does}\nimport sys\nprint(sorted(m for m in sys.modules if m == {unwanted!r}))") == "[]"


def test_a_task_that_imports_pytorch_late_is_told_to_import_it_first():
    """Else its threads and seeds would be those of the process."""
    assert printed(f"{LATE}\nprint(made['status'])") == "failed"


def printed(code: str) -> str:
    """The last line that a Python process prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    call, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
