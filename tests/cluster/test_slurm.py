"""The pipeline on a real SLURM of one node (slurm.sh, as root), disturbed. .ci/run also sends the whole smoke tier through it.

LOWMEM_SLURM=1 python -m pytest -m slow -n 0 tests/cluster
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

import checkout
import pytest
from checkout import SMOKE_TRAIN, edit, start, wait_for

from lowmem.pipeline import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).with_name("slurm.sh")
# No accounting database here, and no waiting for a busy controller.
HERE = "--slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 1 --latency-wait 5"
PROFILE = ("--workflow-profile", "profiles/slurm", *HERE.split())
SMOKE = ("--config", "tier=smoke")
GPT2 = "results/smoke/gpt2_sizes"


@pytest.fixture(scope="module", autouse=True)
def slurm():
    subprocess.run([SCRIPT, "start"], check=True)
    yield
    subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture
def longer(tmp_path):
    """A project whose runs last long enough to be disturbed, and the records of the same runs without a cluster."""
    project = checkout.with_toy_text(checkout.copy(tmp_path / "project"))
    steps = "train: {steps: 400, eval_every: 200, eval_batches: 2, checkpoint_every: 25}"
    edit(project / "workflow/config/experiments/gpt2_sizes.yaml", SMOKE_TRAIN, steps)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(project, undisturbed)
    checkout.snakemake(undisturbed, f"{GPT2}/done.json", *SMOKE)
    return project, undisturbed


def slurm_says(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def running(rule: str) -> list[str]:
    """Ids of running jobs of a rule; the plugin writes the rule into the job's comment."""
    lines = slurm_says("squeue", "-h", "-t", "RUNNING", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in lines if rule in line]


def waiting(rule: str) -> list[str]:
    """Ids of jobs of a rule that wait for a node."""
    lines = slurm_says("squeue", "-h", "-t", "PENDING", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in lines if rule in line]


def finished(process: subprocess.Popen, project: Path) -> None:
    """The pipeline ends well; what SLURM and Snakemake said is shown otherwise."""
    code = process.wait(timeout=400)
    logs = [path.read_text() for path in sorted((project / ".snakemake/log").glob("*.log"))]
    assert code == 0, "\n".join(logs)[-6000:]


def trained(project: Path):
    return lambda: running("train") and list((project / GPT2).rglob("checkpoint-*/[!.]*"))


def node() -> str:
    return slurm_says("sinfo", "-h", "-o", "%n")


def resume(name: str, seconds: float = 120) -> None:
    """Put a drained node back to work. A controller that has just started may refuse, and yet do it."""
    until = time.monotonic() + seconds
    while "drain" in slurm_says("sinfo", "-h", "-o", "%T"):
        assert time.monotonic() < until, slurm_says("scontrol", "show", "node", name)
        subprocess.run(["scontrol", "update", f"nodename={name}", "state=resume"], capture_output=True)
        time.sleep(1)


def test_a_cancelled_job_goes_on_though_its_node_is_drained_and_the_controller_restarts(longer):
    project, undisturbed = longer
    process = start(project, f"{GPT2}/done.json", *SMOKE, *PROFILE)
    wait_for(process, trained(project), seconds=200)
    [job] = running("train")
    slurm_says("scontrol", "update", f"nodename={node()}", "state=drain", "reason=test")
    subprocess.run(["scancel", job], check=True)
    wait_for(process, lambda: waiting("train"), seconds=200)  # submitted again, and no node takes it
    subprocess.run([SCRIPT, "restart"], check=True)
    assert waiting("train") and not running("train")
    resume(node())
    finished(process, project)
    records = [json.loads(path.read_text()) for path in (project / GPT2).rglob("record.json")]
    assert len(records) == 4 and any(made["resumed_from"] for made in records)
    assert record.equal(undisturbed / GPT2, project / GPT2) == []


def test_slurm_of_somebody_else_is_left_alone(tmp_path):
    copy = tmp_path / "slurm.sh"
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=theirs\n")
    copy.write_text(SCRIPT.read_text().replace("conf=/etc/slurm/slurm.conf", f"conf={conf}"))
    done = subprocess.run(["bash", copy, "start"], capture_output=True, text=True)
    assert done.returncode == 1 and "belongs to somebody else" in done.stderr
    assert conf.read_text() == "ClusterName=theirs\n"
