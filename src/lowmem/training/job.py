"""The runs of a job, one after the other, each from its checkpoint to its record.

PyTorch is imported by the tasks that use it: a NumPy-only task finishes before PyTorch would have loaded.
"""

import contextlib
import gc
import importlib
import json
import time
import traceback
from pathlib import Path
from types import ModuleType

from lowmem import distributed, files, kept_files, progress, provenance
from lowmem.errors import Diverged, Failed, Misuse, one_line
from lowmem.pipeline import load, prerequisites, record
from lowmem.progress import say
from lowmem.training import checkpoint, machine


def run_job(root: Path, runs: list[dict]) -> int:
    """All runs in order, in this process. Final records are reused. 1 when a run failed, else 0.

    A failed run does not stop the others. SIGTERM writes a checkpoint and exits with 143.
    """
    for run in runs:
        if "waits" in run:
            name, tier = run["waits"], run["tier"]
            raise Misuse(f"{run['id']}: no rate is chosen yet; run {name} in tier {tier}, then lowmem rates {name}")
        machine.device_of(run)  # refuse the whole job before it starts
    with distributed.process_group(runs):
        return run_all(root, runs)


def run_all(root: Path, runs: list[dict]) -> int:
    """The runs of a job, one after the other; runs of one device are left to rank 0."""
    failed, speeds = 0, []
    for number, run in enumerate(runs, 1):
        if distributed.rank() and distributed.devices(run) == 1:
            continue
        label = f"[{number}/{len(runs)}] {run['tier']}/{run['id']}"
        old = record.reusable(root, run)
        if distributed.devices(run) > 1 and distributed.any_rank(bool(old)):  # a rank may read it a moment later
            old = old or {"status": "final"}
        if old:
            checkpoint.remove(checkpoint.place(record.folder(root, run), run["config_hash"]))
            distributed.tell(f"{label}: {old['status']} before, record kept")
            continue
        try:
            with distributed.rank0_only(run):
                made = train_run(root, run, label)
        except Failed as error:  # not even the record could be written
            made = {"status": "failed", "reason": str(error)}
        if {"pretrained", "size"} & run["config"].get("model", {}).keys():
            gc.collect()  # hooks make a model part of a cycle: a large one must not wait for Python to find it
        failed += made["status"] == "failed"
        speeds.append(made.get("throughput"))
        ending = f": {made['reason']}" if made["reason"] else f" {progress.summary(made)}"
        distributed.tell(f"{label}: {made['status']}{ending}")
    progress.share(speeds)
    return int(failed > 0)


def train_run(root: Path, run: dict, label: str = "") -> dict:
    """One run from its checkpoint, if there is one, to its record, which is written and returned."""
    folder, first = record.folder(root, run), distributed.rank() == 0
    made, before = record.new_record(root, run), load.start()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("record.json", record.WEIGHTS) if first else ():
            (folder / name).unlink(missing_ok=True)  # the curve beside them is about to change
    except OSError as error:
        advice = "remove that folder" if isinstance(error, IsADirectoryError) else "free space or check permissions"
        raise Failed(f"cannot write {error.filename or folder}: {error.strerror}; {advice}") from error
    made["world_size"] = distributed.world() if distributed.devices(run) > 1 else 1
    try:
        task = importlib.import_module(f"lowmem.tasks.{run['config']['task']}")
        trains = not hasattr(task, "measure")
        if trains:
            importlib.import_module("lowmem.training.loop")  # and PyTorch with it, before threads and seeds are fixed
        run, weights = with_starts(root, run, label)
        if weights:
            made["code"]["files"] |= weights
            made["started"] = record.now()  # without the time of its prerequisites, which have records of their own
        started = time.perf_counter()  # imports belong to the start of the process
        with machine.fixed(run) as device:
            made["device"] = machine.describe(device)
            if trains:  # imported by name, so that tasks that only measure do not depend on the loop
                importlib.import_module("lowmem.training.loop").train(root, run, task, made, folder, device, label)
            else:
                measure(root, run, task, made, folder)
        if made["throughput"]:
            made["throughput"]["run_s"] = round(time.perf_counter() - started, 3)  # with model, data and evaluations
    except Exception as error:
        short = machine.out_of_memory(error)
        made["status"] = short or ("diverged" if isinstance(error, Diverged) else "failed")
        made["reason"] = one_line(error, 1000)
        if short == "failed":
            made["reason"] = (
                f"this machine has too little memory left ({made['reason'][:200]}); free some, or ask for less"
            )
        elif not isinstance(error, (Misuse, Failed)):
            made["reason"] = f"{type(error).__name__}: {made['reason']}; see train.log"
            with contextlib.suppress(Failed):
                name = "train.log" if first else f"train.rank{distributed.rank()}.log"
                files.write_text(folder / name, traceback.format_exc())
    made["load"] = before and load.since(before)
    if not first:
        if made["status"] not in record.FINAL:
            say(f"{label} rank {distributed.rank()}: {made['status']}: {made['reason']}")
            raise SystemExit(1)  # so that torchrun, and the next collective, stop the others
        return made
    made = record.write(folder, made)
    if made["status"] in record.FINAL:
        checkpoint.remove(checkpoint.place(folder, run["config_hash"]))
    return made


def with_starts(root: Path, run: dict, label: str) -> tuple[dict, dict[str, str]]:
    """The run with {config, weights} of each run that it starts from in its configuration, and {file: sha256} of these weights.

    Such a run is trained first if its record or its weights are missing. Failed if it did not finish.
    """
    config, files = run["config"], {}
    for (key, inner), before in prerequisites.of(run).items():
        made = run_before(root, before, label)
        if made["status"] != "done":
            raise Failed(f"{key}.{inner}: {before['id']}, which it starts from, {made['status']}: {made['reason']}")
        path = record.folder(root, before) / record.WEIGHTS
        files |= dict.fromkeys(provenance.names(root, [path]), made["weights"]["sha256"])
        config = {**config, key: {**config[key], inner: {"config": before["config"], "weights": str(path)}}}
    return {**run, "config": config}, files


def run_before(root: Path, run: dict, label: str) -> dict:
    """The record of a run that another one starts from."""
    with distributed.locked(record.folder(root, run)):
        made = distributed.first(ended(root, run))
        if made:
            return made
        if distributed.devices(run) != distributed.world():
            raise Failed(
                f"it starts from {run['id']} (tier {run['tier']}), which runs on {distributed.devices(run)} devices and "
                "has not ended; run that first"
            )
        distributed.tell(f"{label}: first {run['tier']}/{run['id']}, which it starts from")
        return distributed.first(train_run(root, run, label))


def ended(root: Path, run: dict) -> dict | None:
    """The record of a run that another one starts from, if it is final; a finished run also needs its weights."""
    made = record.reusable(root, run)
    lost = made and made["status"] == "done" and not record.has_weights(record.folder(root, run), made)
    return None if lost else made


def measure(root: Path, run: dict, task: ModuleType, made: dict, folder: Path) -> None:
    """Fill the record by the task's own measurement."""
    if distributed.devices(run) > 1:
        raise Misuse(f"task {run['config']['task']} does not train; drop train.devices")
    result = task.measure(run["config"], run["seed"], root)
    made["code"]["files"] |= provenance.hashes(root, result.get("inputs", ()))
    made["arrays"] = record.write_arrays(folder, result.get("arrays"))
    made.update(metrics={"final": {}, "best": {}, **result["metrics"]}, memory=result.get("memory"), status="done")
    if result.get("curve") is not None:
        lines = [json.dumps(record.nan_to_null(line)) + "\n" for line in result["curve"]]
        made["curve"] = kept_files.write(folder / record.CURVE, "".join(lines).encode(), sealed=False)
