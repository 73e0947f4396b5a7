"""ReMax on two devices: the start and the reward model are trained sharded, kept whole, and the run is that of one."""

import fcntl
import time

import alignment_runs
import pytest
from torchrun_tiny import torchrun

from lowmem import files
from lowmem.files import read_json
from lowmem.pipeline import prerequisites, record
from lowmem.training import job

pytestmark = pytest.mark.slow
root = alignment_runs.root  # the fixture


def test_two_devices_train_what_they_start_from_and_give_the_rewards_of_one(root):
    config, measure = alignment_runs.config, alignment_runs.RULE
    small = {"micro_batch_size": 2, "steps": 3}

    def remax(**devices):
        start = {"name": "llama", "pretrained": config("sft", **small, **devices)}
        measured = {**measure, "reward": config("reward", **small, **devices)}
        return config("remax", measured, start, eval_every=3, **small, **devices)

    made = job.train_run(root, alignment_runs.run_of(remax(), variant="one"))
    assert made["status"] == "done", made["reason"]
    two = alignment_runs.run_of(remax(devices=2), variant="two")
    [first, _] = prerequisites.every([two])
    lock = files.lock_file(record.folder(root, first))
    with lock as held:  # another job trains the start: both ranks wait and stay in touch
        fcntl.flock(held, fcntl.LOCK_EX)
        process = torchrun(root, two, 2)
        time.sleep(15)
        assert process.poll() is None
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0, told[-2000:]
    other, start = (read_json(record.folder(root, run) / "record.json") for run in (two, first))
    assert other["world_size"] == start["world_size"] == 2 and start["weights"]["bytes"] > 0
    for key in ("reward", "kl", "val_loss"):
        assert other["metrics"]["final"][key] == pytest.approx(made["metrics"]["final"][key], rel=0.02, abs=1e-4)
