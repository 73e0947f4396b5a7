"""What a run starts from: an ordinary run, made first, whose weights and failures are told to those that start from it."""

import json

import alignment_runs
import pytest
from alignment_runs import RULE, config, run_of

from lowmem import provenance
from lowmem.errors import Misuse
from lowmem.pipeline import experiments, planning, prerequisites, record
from lowmem.training import job

root = alignment_runs.root  # the fixture
PLACE = experiments.find_root()


def started(first, variant="a", **more):
    """A run of remax that starts from the configuration of another one."""
    return run_of(config("remax", RULE, {"name": "llama", "pretrained": first}, **more), variant=variant)


def test_what_a_run_starts_from_is_made_first_and_once(root, monkeypatch):
    run = started(config("sft"))
    made = job.train_run(root, run)
    [first] = prerequisites.every([run])
    before = record.load(record.folder(root, first))
    weights = record.folder(root, first) / record.WEIGHTS
    assert made["status"] == "done" and before["status"] == "done" and before["metrics"]["final"]["val_loss"] > 0
    name = f"results/smoke/{first['id']}/weights.safetensors"
    assert made["code"]["files"][name] == before["weights"]["sha256"] == provenance.sha256(weights)
    again = job.train_run(root, started(config("sft"), variant="b"))
    assert again["metrics"] == made["metrics"] and record.load(record.folder(root, first)) == before


def test_deleted_weights_leave_records_whole_and_come_back_when_they_are_needed(root):
    run = started(config("sft"))
    job.train_run(root, run)
    [first] = prerequisites.every([run])
    path = record.folder(root, first) / record.WEIGHTS
    held = path.read_bytes()
    path.unlink()
    assert record.reusable(root, run) and record.reusable(root, first)
    assert job.train_run(root, started(config("sft"), variant="b"))["status"] == "done"
    assert path.read_bytes() == held and record.reusable(root, run)


def test_an_archived_record_says_which_weights_they_were(root):
    run = started(config("sft"))
    made = job.train_run(root, run)
    (root / "results/kept/smoke").mkdir(parents=True)
    (root / "results/smoke/prerequisites").rename(root / "results/kept/smoke/prerequisites")
    assert provenance.drifted(root, made["code"]["files"]) == []


def test_damaged_weights_are_not_used(root):
    run = started(config("sft"))
    made = job.train_run(root, run)
    [first] = prerequisites.every([run])
    path = record.folder(root, first) / record.WEIGHTS
    held = path.read_bytes()
    path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    again = job.train_run(root, started(config("sft"), variant="b"))
    assert again["metrics"] == made["metrics"] and path.read_bytes() == held


def test_other_weights_ask_for_another_run(root):
    run = started(config("sft"))
    job.train_run(root, run)
    [first] = prerequisites.every([run])
    path = record.folder(root, first) / "record.json"
    altered = {**json.loads(path.read_text()), "weights": {"sha256": "0" * 64, "bytes": 1}}
    altered.pop("digest")
    record.kept_files.write_json(path, altered)
    assert record.reusable(root, run) is None


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"optimizer": {"name": "adamw", "lr": 1e38}}, "diverged", "not finite at step"),
        ({"data": {"dataset": "absent", "source": "package"}}, "failed", "lowmem prepare absent"),
    ],
)
def test_a_start_that_did_not_end_is_told_in_one_line(root, change, status, words):
    first = {**config("sft"), **change}
    made = job.train_run(root, started(first))
    [before] = prerequisites.every([started(first)])
    assert made["status"] == "failed" and "\n" not in made["reason"] and "train.log" not in made["reason"]
    for said in ("model.pretrained", before["id"], status, words):
        assert said in made["reason"]
    assert record.load(record.folder(root, before))["status"] == status


def test_a_start_of_a_start_is_made_before_it(root):
    run = started({**config("sft"), "model": {"name": "llama", "pretrained": config("sft", steps=2)}})
    assert job.train_run(root, run)["status"] == "done"
    inner, outer = prerequisites.every([run])
    assert inner["config"]["train"]["steps"] == 2 and outer["config"]["model"]["pretrained"] == inner["config"]
    assert all(record.load(record.folder(root, one))["status"] == "done" for one in (inner, outer))


def test_an_interrupted_start_goes_on_from_its_checkpoint(root, monkeypatch):
    from lowmem.training import loop

    step = loop.Loop.one_step

    def stop(self, curve):
        step(self, curve)
        if self.step == 3:
            raise KeyboardInterrupt

    run = started(config("sft", checkpoint_every=2))
    monkeypatch.setattr(loop.Loop, "one_step", stop)
    with pytest.raises(KeyboardInterrupt):
        job.train_run(root, run)
    monkeypatch.setattr(loop.Loop, "one_step", step)
    assert job.train_run(root, run)["status"] == "done"
    assert record.load(record.folder(root, prerequisites.every([run])[0]))["resumed_from"] == [2]


# -- in the pipeline ---------------------------------------------------------------------------------------------------


def test_a_job_waits_for_what_its_runs_start_from():
    jobs = planning.jobs(PLACE, "laptop", {}, ["remax"])
    assert set(jobs) == {"remax", "sft", "reward", "alignment_base"}
    assert jobs["remax"]["after"] == ["results/laptop/reward/done.json", "results/laptop/sft/done.json"]
    assert jobs["sft"]["after"] == ["results/laptop/alignment_base/done.json"]
    assert jobs["alignment_base"]["after"] == []


def test_where_each_run_is_a_job_only_the_runs_that_are_needed_come_before():
    jobs = planning.jobs(PLACE, "paper", {}, ["remax"])
    others = {name for name in jobs if not name.startswith("remax/")}
    assert others == {"sft/full-adamw/seed1234", "reward/first-adamw/seed1234"}
    assert jobs["remax/rule-adamw/seed1235"]["after"] == ["results/paper/sft/full-adamw/seed1234/done.json"]


def test_networks_that_measure_are_jobs_that_can_be_started_by_their_arguments():
    jobs = planning.jobs(PLACE, "laptop", {}, ["dit"])
    before = {name: one for name, one in jobs.items() if name.startswith("prerequisites/")}
    assert {name.split("/")[1].split("-")[0] for name in before} == {"autoencode", "classify"} and len(before) == 3
    for one in before.values():
        assert one["done"] in jobs["dit"]["after"]
        variant = one["arguments"].split("--variant ")[1]
        assert [run["id"] for run in planning.select(PLACE, "dit", "laptop", {}, variant)] == [one["runs"][0]["id"]]
        assert one["runs"][0]["keep_weights"]


def test_every_start_of_every_tier_keeps_its_weights():
    for tier in experiments.tier_names(PLACE):
        for name in experiments.experiment_names(PLACE):
            if not experiments.runs_in(PLACE, experiments.load_experiment(PLACE, name), tier):
                continue
            found = prerequisites.every(experiments.runs(PLACE, name, tier))
            assert all(run["keep_weights"] for run in found)


def test_an_experiment_that_keeps_no_weights_is_no_start():
    start = {"model": {"pretrained": {"experiment": "sft", "variant": "lora-adamw"}}}
    with pytest.raises(Misuse, match=r"sft keeps no weights of lora-adamw; add it to its keep_weights"):
        experiments.with_stages(PLACE, start, "laptop", {})


def test_a_configuration_hash_does_not_depend_on_names():
    """Records of before stay: only the configuration of what a run starts from counts, as ever."""
    [run] = [one for one in experiments.runs(PLACE, "remax", "smoke") if one["variant"] == "rule-adamw"]
    assert run["config_hash"] == experiments.config_hash({**run["config"], "seed": 0})
    assert run["config"]["model"]["pretrained"] == run["after"]["model", "pretrained"]["config"]
