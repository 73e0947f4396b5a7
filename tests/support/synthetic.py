"""A checkout without results, and records written into it: what exhibits, claims and the report are tested on."""

import atexit
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from lowmem import kept_files
from lowmem.files import write_json
from lowmem.pipeline import experiments, planning
from lowmem.reporting import claims, exhibit, report

ROOT = Path(__file__).resolve().parents[2]


def checkout(folder: Path) -> Path:
    """A root with the real configuration and published values; results, archived records and datasets are its own."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    own = {"records", "raw", "prepared", "cache"}  # else a test would write among a user's
    data = [f"data/{path.name}" for path in (ROOT / "data").iterdir() if path.name not in own]
    for name in ("workflow", "src", *data):
        (folder / name).symlink_to(ROOT / name)
    return folder


def record(root: Path, run: dict, final: dict, curve: list[dict] | None = None, **changes) -> dict:
    """Write the record of a planned run; `changes` replace keys of it."""
    written = {
        "schema": 1,
        **{key: run[key] for key in ("id", "experiment", "variant", "seed", "tier", "config", "config_hash")},
        "status": "done",
        "reason": None,
        "code": {"commit": "c0ffee", "dirty": False, "files": {}},
        "packages": {"torch": "2.13.0", "transformers": None},
        "device": {"type": "cpu", "name": "a processor", "cores": 2, "memory_bytes": 2**33, "flags": []},
        "world_size": 1,
        "started": "2025-01-01T00:00:00+00:00",
        "ended": "2025-01-01T00:01:00+00:00",
        "metrics": {"final": final, "best": {}},
        "memory": None,
        "throughput": None,
        "resumed_from": [],
        **changes,
    }
    folder = root / "results" / run["tier"] / run["id"]
    if curve is not None:
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        written["curve"] = kept_files.write(folder / "curve.jsonl", lines.encode(), sealed=False)
    return kept_files.write_json(folder / "record.json", written)


def write_all(root: Path, tier: str = "laptop") -> None:
    """Records of every run of all exhibits: counts as arithmetic gives them, losses with a fixed gap.

    They are made once and linked into the root, as many tests start from them; writing a record replaces its link.
    """

    def link(source, target):
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)

    shutil.copytree(every_record(tier) / "results", root / "results", copy_function=link, dirs_exist_ok=True)


@functools.cache
def every_record(tier: str) -> Path:
    """A root with the records of every run of a tier."""
    import synthetic_alignment
    import synthetic_hessians
    import synthetic_losses
    import synthetic_memory
    import synthetic_tuning
    import synthetic_vision

    folder = Path(tempfile.mkdtemp(prefix="lowmem-records-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = checkout(folder)
    with mock.patch("os.fsync"):  # hundreds of records: nothing here has to survive a power cut
        write_state_memory(root, tier)
        write_events(root, tier)
        write_losses(root, tier)
        synthetic_hessians.write_everything(root, tier)
        synthetic_losses.write_everything(root, tier)
        synthetic_memory.write_memory(root, tier)
        synthetic_tuning.write_everything(root, tier)
        synthetic_vision.write_everything(root, tier)
        synthetic_alignment.write_everything(root, tier)
    return root


def only(monkeypatch, *ids: str) -> list[str]:
    """Let there be no exhibits but these, and their claims, so that a test draws little."""
    every, known = planning.exhibits, claims.load
    monkeypatch.setattr(planning, "exhibits", lambda root: {id: h for id, h in every(root).items() if id in ids})

    def load(root):
        with mock.patch.object(planning, "exhibits", every):
            return [claim for claim in known(root) if claim["exhibit"] in ids]

    monkeypatch.setattr(claims, "load", load)
    return list(ids)


def draw(folder: Path, kept: Path) -> None:
    """Records of the whole laptop tier in a folder, in reports/laptop/so_far all that is drawn from them; kept: a file
    with {id: what is shown}. Tests ask for the fixture `everything`, which calls this once, since it takes long."""
    root = checkout(folder)
    write_all(root)
    shown, make = {}, exhibit.make

    def keep(root, id, *arguments, **options):
        shown[id] = dataclasses.replace(make(root, id, *arguments, **options), figure=None)

    with mock.patch.object(exhibit, "make", keep):
        report.make(root, "laptop", {}, "so_far")
    write_json(kept, {id: dataclasses.asdict(one) for id, one in shown.items()})


def write_state_memory(root: Path, tier: str) -> None:
    parameters = {"gpt2_1.5b": 1_556_840_000, "llama2_7b": 6_738_415_616, "llama2_13b": 13_015_864_320}
    kept = {"adamw": 1.0, "adam_mini": 1.7e-4, "adam_mini_v1.0": 0.0389}  # share of v
    for run in experiments.runs(root, "adam_mini_state_memory", tier):
        model, optimizer = run["variant"].split("-")
        p = parameters.get(model, 1_100_048_384)
        scalars = int(p * kept[optimizer])
        record(root, run, {"parameters": p, "state_bytes": 4 * (p + scalars), "second_moment_scalars": scalars})
    p = parameters["llama2_7b"]
    state = {"adamw": 12 * p, "sgd": 4 * p, "lomo": 0}
    for run in experiments.runs(root, "lomo_state_memory", tier):
        live = 32000 * 4096 * 2 if run["variant"] == "lomo" else 2 * p
        record(root, run, {"param_bytes": 2 * p, "live_grad_bytes": live, "state_bytes": state[run["variant"]]})


def write_events(root: Path, tier: str, size: int = 16384) -> None:
    """SGD updates after backward, LOMO inside it."""
    for run in experiments.runs(root, "lomo_event_order", tier):
        layers, optimizer = run["config"]["measure"]["layers"], run["config"]["optimizer"]["name"]
        names = [f"P{k}" for k in range(layers, 0, -1)]
        if optimizer == "lomo":
            order = [(event, name, 1) for name in names for event in ("gradient", "update")]
        else:
            order = [("gradient", name, k + 1) for k, name in enumerate(names)]
            order += [("update", name, layers) for name in reversed(names)]
        curve = [
            {"index": k, "event": e, "parameter": n, "live_gradients": live, "live_gradient_bytes": live * size}
            for k, (e, n, live) in enumerate(order)
        ]
        peak = max(row["live_gradients"] for row in curve)
        final = {"live_peak": peak, "live_peak_bytes": peak * size, "total_gradient_bytes": layers * size}
        record(root, run, {**final, "largest_gradient_bytes": size}, curve)


def write_losses(root: Path, tier: str, gap: float = 0.004, early: float = 0.03, noise: float = 0.0005) -> None:
    """Adam-mini `early` behind at a quarter of the run and `gap` behind at the end, with paired noise by seed."""
    for run in experiments.runs(root, "gpt2_sizes", tier):
        size, optimizer = run["variant"].rsplit("-", 1)
        curve = []
        for step in range(0, 401, 100):
            loss = 4 - step / 400 + 0.1 * run["seed"] + 0.01 * len(size)
            if optimizer == "adam_mini":
                loss += (gap if step == 400 else early) + noise * (run["seed"] - 1)
            curve.append({"step": step, "tokens": step * 1024, "train_loss": loss, "val_loss": loss})
        record(root, run, {"val_loss": curve[-1]["val_loss"], "step": 400, "tokens": 409600}, curve)
