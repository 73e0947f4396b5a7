"""Run a script of examples/ as its docstring says, and read the losses it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def losses(script: str, *arguments: str, processes: int | None = None) -> list[float]:
    """Losses in order; AssertionError with what it printed last when it fails. processes: under torchrun, if not None."""
    command = [sys.executable]
    if processes is not None:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run(
        [*command, str(ROOT / "examples" / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # colours
    return [float(x) for x in re.findall(r"\bloss'?:? +'?([0-9.]+)", text)]


def falls(found: list[float], steps: int) -> bool:
    return len(found) == steps and found[-1] < 0.8 * found[0]
