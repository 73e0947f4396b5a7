"""ReMax on two devices: the start and the reward model are trained sharded, kept whole, and the run is that of one."""

import fcntl
import time

import alignment_runs
import pytest
from torchrun_tiny import torchrun

from lowmem.files import read_json
from lowmem.pipeline import record
from lowmem.training import job

pytestmark = pytest.mark.slow
root = alignment_runs.root  # the fixture


def test_two_devices_train_all_stages_and_give_the_rewards_of_one(root, tmp_path):
    config, measure = alignment_runs.config, alignment_runs.RULE
    small = {"micro_batch_size": 2, "steps": 3}
    start = {"name": "llama", "pretrained": config("sft", **small)}
    settings = config("remax", {**measure, "reward": config("reward", **small)}, start, eval_every=3, **small)
    one = alignment_runs.run_of(settings, variant="one")
    made = job.train_run(root, one)
    assert made["status"] == "done", made["reason"]
    for path in (root / "data/prepared/networks").glob("*.safetensors"):
        path.unlink()
    two = alignment_runs.run_of({**settings, "train": {**settings["train"], "devices": 2}}, variant="two")
    process = torchrun(root, two, 2)
    [lock] = (root / "data/prepared/networks").glob(".sft-*.lock")
    with open(lock, "w") as held:  # another job trains the start: both ranks wait and stay in touch
        fcntl.flock(held, fcntl.LOCK_EX)
        time.sleep(15)
        assert process.poll() is None
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0, told.decode()[-2000:]
    other = read_json(record.folder(root, two) / "record.json")
    assert other["world_size"] == 2 and len(list((root / "data/prepared/networks").glob("*.safetensors"))) == 2
    for key in ("reward", "kl", "val_loss"):
        assert other["metrics"]["final"][key] == pytest.approx(made["metrics"]["final"][key], rel=0.02, abs=1e-4)
