"""train under torchrun: the record of one device, refusals, interruption, a rank that dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
from tiny import make_root, make_run
from torchrun_tiny import torchrun

from lowmem.errors import Misuse
from lowmem.pipeline import record
from lowmem.training import job

pytestmark = pytest.mark.slow

OPTIMIZERS = {
    "adam_mini": {"name": "adam_mini", "lr": 0.003},
    "lomo": {"name": "lomo", "lr": 0.1, "max_grad_norm": 1.0},
    "adamw": {"name": "adamw", "lr": 0.003},
}


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def run_here(rank: int, world: int, root: str, runs: list[dict]) -> int:
    """The job on processes that are joined already, as torchrun's are; they start in a tenth of the time."""
    os.environ["WORLD_SIZE"] = str(world)
    return job.run_job(Path(root), runs)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def curve(root, run) -> list[dict]:
    return [json.loads(line) for line in (record.folder(root, run) / "curve.jsonl").read_text().splitlines()]


def test_two_devices_write_the_records_that_one_device_writes(root, tmp_path):
    """A job of three runs. LOMO cannot accumulate: one device takes the same batch, and half the evaluated windows."""
    settings = {name: {"grad_clip": 1.0} if name != "lomo" else {} for name in OPTIMIZERS}
    many = {
        name: make_run(name, optimizer=OPTIMIZERS[name], devices=2, micro_batch_size=2, **settings[name])
        for name in OPTIMIZERS
    }
    assert ranks.launch(run_here, 2, str(root), list(many.values())) == [0, 0]
    alone = make_root(tmp_path / "alone")
    for name, run in many.items():
        batch = {"eval_batches": 1} if name == "lomo" else {"micro_batch_size": 2}
        one = make_run(name, optimizer=OPTIMIZERS[name], **batch, **settings[name])
        expected = job.train_run(alone, one)
        made = json.loads((record.folder(root, run) / "record.json").read_text())
        assert made["status"] == "done" and made["world_size"] == 2 and expected["world_size"] == 1
        assert made["config"]["train"]["devices"] == 2
        ours, theirs = made["metrics"]["final"], expected["metrics"]["final"]
        assert ours["tokens"] == theirs["tokens"]
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-4)
        for ours, theirs in zip(curve(root, run), curve(alone, one), strict=True):
            for key in ("train_loss", "val_loss", "grad_norm"):
                assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-4), (name, key, ours, theirs)
        parameters = (made["memory"]["parameters"], expected["memory"]["parameters"])
        assert 0.4 < parameters[0] / parameters[1] < 0.6  # a rank's own part


def test_fewer_processes_than_devices_are_refused_before_anything_is_written(root):
    with pytest.raises(Misuse, match="asks for 2 devices and 1 process run; start it with torchrun --nproc-per-node 2"):
        job.run_job(root, [make_run(devices=2)])
    assert not (root / "results").exists()


def test_a_batch_that_two_devices_cannot_share_is_refused(root):
    run = make_run(devices=2)
    assert [kind for kind, _ in ranks.outcomes(run_here, 2, str(root), [run])] == ["ok", "error"]
    made = json.loads((record.folder(root, run) / "record.json").read_text())
    assert made["status"] == "failed"
    assert re.search("2 devices cannot share evenly; set train.micro_batch_size to 2", made["reason"])


def test_an_interrupted_run_continues_where_it_was(root, tmp_path):
    settings = dict(devices=2, micro_batch_size=2, steps=40, checkpoint_every=10, eval_every=20)
    run = make_run(optimizer=OPTIMIZERS["adam_mini"], **settings)
    process = torchrun(root, run, 2)
    folder = record.folder(root, run) / f"checkpoint-{run['config_hash']}"
    end = time.monotonic() + 90
    while not list(folder.glob("step*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, text = finish(process)
    assert code != 0, text
    assert not (record.folder(root, run) / "record.json").exists()
    assert ranks.launch(run_here, 2, str(root), [run]) == [0, 0]
    assert json.loads((record.folder(root, run) / "record.json").read_text())["resumed_from"]
    other = make_root(tmp_path / "other")
    assert ranks.launch(run_here, 2, str(other), [run]) == [0, 0]
    assert record.equal(record.folder(root, run), record.folder(other, run)) == []
    assert not folder.exists()


def test_a_rank_that_dies_ends_the_run_without_a_hang(root):
    run = make_run(devices=2, micro_batch_size=2, steps=100000)
    process = torchrun(root, run, 2)
    end = time.monotonic() + 90
    path = record.folder(root, run) / "curve.jsonl"
    while (not path.exists() or path.stat().st_size < 500) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(max(children), signal.SIGKILL)  # a worker of this very run
    started = time.monotonic()
    code, _ = finish(process)
    assert code != 0
    assert time.monotonic() - started < 60
    made = record.folder(root, run) / "record.json"
    assert not made.exists() or json.loads(made.read_text())["status"] == "failed"


def test_the_command_line_under_torchrun_ends_with_its_summary(root):
    """As the pipeline starts it: the processes of one job do not lock each other out, and one writes done.json."""
    for name in ("workflow", "src"):
        (root / name).symlink_to(Path(__file__).parents[2] / name)
    (root / "data/sources.yaml").write_text("tiny: {sources: []}\n")
    run = make_run(devices=2, micro_batch_size=2)
    (root / "run.json").write_text(json.dumps({key: run[key] for key in ("experiment", "seed", "tier", "config")}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lowmem"]
    command += ["train", str(root / "run.json"), "--done", str(root / "done.json")]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "LOWMEM_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads((root / "done.json").read_text())
    assert row["status"] == "done"
