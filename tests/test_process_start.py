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
PLAN = "from lowmem import claims, plan"


@pytest.mark.parametrize(("does", "unwanted"), [(OPTIMIZE, "torch._dynamo"), (PLAN, "torch"), (PLAN, "numpy")])
def test_a_process_does_not_load_what_it_does_not_need(does, unwanted):
    seen = f"{does}\nimport sys\nprint(sorted(m for m in sys.modules if m == {unwanted!r}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    call = [sys.executable, "-c", seen]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
