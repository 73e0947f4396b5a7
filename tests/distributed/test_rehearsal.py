"""Every way in which the paper tier launches something, at toy size: eight processes where it asks for eight GPUs."""

import math
import os
from pathlib import Path

import alignment_runs
import checkpoints
import launch_paths
import pytest
import questions
import ranks
import tiny

from lowmem.files import read_json
from lowmem.pipeline import experiments, record
from lowmem.training import job

ROOT = experiments.find_root()


def alone(path: tuple) -> bool:
    return path[2] == 1


def test_what_one_process_starts_in_the_paper_tier_it_starts_in_smaller_tiers_too():
    """All but one path, whose checkpoint comes from the hub; the last test here goes it."""
    small = launch_paths.paths(ROOT, "smoke").keys() | launch_paths.paths(ROOT, "laptop").keys()
    left = [path for path in launch_paths.paths(ROOT, "paper") if alone(path) and path not in small]
    assert [(path[0], path[5]) for path in left] == [("rounding", "checkpoint")]


@pytest.fixture
def root(tmp_path):
    """Small data of every kind, and a checkpoint of several files."""
    root = tiny.make_root(tmp_path / "root")
    (root / "data/sources.yaml").write_text("x: {sources: []}\n")
    alignment_runs.write_talk(root)
    questions.write_rows(root, [questions.row(k) for k in range(37)], [questions.row(k) for k in range(11)])
    checkpoints.write(root / "llama", vocab_size=100)  # its letters hold all of ASCII
    return root


def toys(root: Path, chosen, world: int) -> dict[tuple, dict]:
    """{path: a run of the paper tier, made small}."""
    found = {}
    for path, run in launch_paths.paths(ROOT, "paper").items():
        if chosen(path):
            config = launch_paths.toy(run["config"], root / "llama", world)
            hashed = experiments.config_hash({**config, "seed": run["seed"]})
            own = {key: value for key, value in run.items() if key != "after"}  # what it starts from is small too
            found[path] = {**own, "config": config, "config_hash": hashed, "resources": {"threads": 1, "gpus": 0}}
    return found


def start(rank: int, world: int, root: str, runs: list[dict]) -> int:
    """One job on processes that are joined already, as torchrun's are."""
    os.environ["WORLD_SIZE"] = str(world)
    return job.run_job(Path(root), runs)


def wide(path: tuple) -> bool:
    """The paths that are also gone by eight processes: a fresh start, and one from a checkpoint inside backward."""
    return (path[0] == "pretrain" and path[1] == "gpt2") or (path[0] == "superglue" and path[3] == "backward")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 8])
def test_every_path_of_the_paper_tier_that_asks_for_eight_devices_is_gone(root, world):
    runs = toys(root, lambda path: not alone(path) and wide(path) == (world == 8), world)
    assert len(runs) >= (2 if world == 8 else 11)
    assert ranks.launch(start, world, str(root), list(runs.values()), timeout=240, patience=60) == [0] * world
    for path, run in runs.items():
        made = read_json(record.folder(root, run) / "record.json")
        assert (made["status"], made["world_size"]) == ("done", world), (path, made["reason"])
        assert math.isfinite(made["metrics"]["final"]["val_loss"]), path
        assert made["metrics"]["final"]["step"] == run["config"]["train"]["steps"], path


@pytest.mark.slow
def test_a_path_of_one_process_with_a_checkpoint_from_the_hub_is_gone(root):
    [(path, run)] = toys(root, lambda path: alone(path) and path[5] == "checkpoint", 1).items()
    made = job.train_run(root, run)
    assert made["status"] == "done", (path, made["reason"])
