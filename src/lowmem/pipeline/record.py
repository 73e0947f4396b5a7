"""The record of one run: what ran, on what, with which result. One JSON file that is whole or absent.

Two records are equal when configuration, status, metrics and the curve's loss columns are bitwise equal; times,
machine and memory may differ. A missing number is null, never 0 and never NaN.
"""

import datetime
import io
import json
import math
import zipfile
import zlib
from pathlib import Path

from lowmem import kept_files, provenance
from lowmem.errors import Failed, Misuse
from lowmem.files import atomic_path, safe_names
from lowmem.provenance import neutral

SCHEMA = 1
KEPT = "kept"  # no tier: archives are unpacked in results/kept
ARRAYS, CURVE, WEIGHTS = "arrays.npz", "curve.jsonl", "weights.safetensors"
BESIDE = {"curve": CURVE, "arrays": ARRAYS}  # files beside a record whose hashes it holds
LARGEST = 4 << 30  # bytes of the arrays of a record
FINAL = ("done", "diverged", "oom")  # a failed run is tried again
LOSS_COLUMNS = ("train_loss", "val_loss")


def folder(root: Path, run: dict) -> Path:
    """results/<tier>/<experiment>/<variant>/seed<k>."""
    parts = [run["tier"], *str(run["id"]).split("/")]
    if parts[0] == KEPT:
        raise Misuse(f"tier {KEPT!r}: results/{KEPT} holds archived records; use another name")
    return safe_names.inside(Path(root) / "results", *(safe_names.part(part, "a run's name") for part in parts))


def new_record(root: Path, run: dict) -> dict:
    """A record with everything that is known before the run; its result is null."""
    return {
        "schema": SCHEMA,
        **{key: run[key] for key in ("id", "experiment", "variant", "seed", "tier")},
        "status": None,
        "reason": None,
        "config": run["config"],
        "config_hash": run["config_hash"],
        "code": {**provenance.commit(root), "files": provenance.code_files(run["config"])},
        "packages": provenance.packages(),
        "device": None,
        "world_size": 1,
        "started": now(),
        "load": None,
        "ended": None,
        "metrics": {"final": {}, "best": {}},
        "memory": None,
        "throughput": None,
        "arrays": None,
        "weights": None,
        "resumed_from": [],
        "other_means": [],
    }


def write(path: Path, record: dict) -> dict:
    """Write record.json atomically with NaN and infinity turned into null; returns what was written.

    With the hash of its curve and, last, its own: what is altered later is noticed. Damaged when the curve on the disk is
    no longer what the run wrote; one that a task which only measures finds there is not its own, and goes.
    """
    curve, known = path / CURVE, record.get("curve")
    if known:
        kept_files.check(curve, known)
    elif provenance.measures(record["config"]["task"]):
        curve.unlink(missing_ok=True)
    there = {"sha256": kept_files.sha256(curve), "bytes": curve.stat().st_size} if curve.is_file() else None
    return kept_files.write_json(path / "record.json", nan_to_null({**record, "ended": now(), "curve": there}))


def load(folder: Path) -> dict:
    """The record of a run's folder; Failed when it is missing or altered."""
    return kept_files.read_json(Path(folder) / "record.json")


def integrity_problem(path: Path, record: dict, beside: dict[str, str] = BESIDE) -> str | None:
    """What is missing or altered beside a record; None when everything is intact."""
    for key, name in beside.items():
        if record.get(key) and not whole(path / name, record[key]):
            return f"{name} was altered or lost"
    return None


def whole(path: Path, known: dict) -> bool:
    """Whether a file beside a record is the one that the record lists."""
    try:
        return bool(kept_files.check(path, known))
    except kept_files.Damaged:
        return False


def reusable(root: Path, run: dict) -> dict | None:
    """The run's record if it is final and neither configuration nor code nor data changed since, else None.

    Changes of code that were shown to leave results equal (neutral.py) do not count.
    """
    path = folder(root, run) / "record.json"
    if not path.is_file():
        return None
    try:
        record = load(path.parent)
        same = record["schema"] == SCHEMA and record["status"] in FINAL and record["config_hash"] == run["config_hash"]
        same = same and integrity_problem(path.parent, record) is None
    except Exception:  # a damaged or foreign file is not a record
        return None
    if not same:
        return None
    try:
        return None if neutral.drifted(root, record["code"]["files"], record["config"])[0] else record
    except Failed:  # not of the record: what tells which code made it is damaged
        raise
    except Exception:
        return None


def write_arrays(path: Path, arrays: dict | None) -> dict | None:
    """Matrices and curves too large for JSON as arrays.npz beside the record: {name: numpy array} -> {sha256, bytes}."""
    target = path / ARRAYS
    if not arrays:
        target.unlink(missing_ok=True)
        return None
    import numpy as np

    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # members carry no time: equal arrays, equal bytes
    return kept_files.write(target, packed.getvalue(), sealed=False)


def write_weights(path: Path, tensors: dict) -> dict:
    """Final weights as weights.safetensors beside the record: {name: tensor} -> {sha256, bytes}.

    They are large and not kept for good: once deleted, the run is repeated when another one needs them.
    """
    import safetensors.torch

    target = path / WEIGHTS
    with atomic_path(target) as temporary:
        safetensors.torch.save_file(tensors, temporary)
    return {"sha256": kept_files.sha256(target), "bytes": target.stat().st_size}


def has_weights(path: Path, record: dict) -> bool:
    """Whether the weights that a record lists exist, unaltered."""
    return bool(record.get("weights")) and whole(path / WEIGHTS, record["weights"])


def read_arrays(path: Path, record: dict) -> dict:
    """{name: numpy array} of a record's arrays.npz; empty when the record has none, or the file is lost or damaged."""
    if not record.get("arrays") or not whole(path / ARRAYS, record["arrays"]):
        return {}
    import numpy as np

    try:
        with np.load(path / ARRAYS, allow_pickle=False) as loaded:
            if sum(member.file_size for member in loaded.zip.infolist()) > LARGEST:
                raise kept_files.Damaged(path / ARRAYS, f"holds more than {LARGEST >> 30} GB of arrays; do not use it")
            arrays = dict(loaded)
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is not an array")
        return arrays
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise kept_files.Damaged(path / ARRAYS, f"holds no arrays ({type(error).__name__}); run it again") from error


def nan_to_null(value):
    """The value with every non-finite float replaced by None, at any depth."""
    if isinstance(value, dict):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """Time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def equal(a: Path, b: Path) -> list[str]:
    """Differences between two run folders, or two trees of them, one line each; empty when they are equal."""
    a, b = Path(a), Path(b)
    inside = [sorted(str(path.parent.relative_to(top)) for path in top.rglob("record.json")) for top in (a, b)]
    if not inside[0] and not inside[1]:
        raise Misuse(f"neither {a} nor {b} holds a record.json")
    lines = [f"{name}: only in {a}" for name in inside[0] if name not in inside[1]]
    lines += [f"{name}: only in {b}" for name in inside[1] if name not in inside[0]]
    for name in (name for name in inside[0] if name in inside[1]):
        prefix = "" if name == "." else f"{name}: "
        one, other = load(a / name), load(b / name)
        for key in ("config", "status", "metrics", "arrays"):
            if one.get(key) != other.get(key):
                lines.append(f"{prefix}{key}: {json.dumps(one.get(key))} is not {json.dumps(other.get(key))}")
        curves = [losses(top / name, made) for top, made in ((a, one), (b, other))]
        if len(curves[0]) != len(curves[1]):
            lines.append(f"{prefix}curve: {len(curves[0])} lines, not {len(curves[1])}")
        elif curves[0] != curves[1]:
            at = next(i for i, (left, right) in enumerate(zip(*curves)) if left != right)
            lines.append(f"{prefix}curve line {at + 1}: {curves[0][at]} is not {curves[1][at]}")
    return lines


def curve(folder: Path, record: dict) -> list[dict]:
    """The lines of a record's curve; empty when it has none, Damaged when they are not those that the run wrote."""
    if not record.get("curve"):
        return []
    kept_files.check(folder / CURVE, record["curve"])
    return [json.loads(line) for line in (folder / CURVE).read_text(encoding="utf-8").split("\n") if line.strip()]


def losses(folder: Path, record: dict) -> list[dict]:
    """Step and loss columns of a curve; empty when there is none."""
    return [{key: row.get(key) for key in ("step", *LOSS_COLUMNS)} for row in curve(folder, record)]


def show(folder: Path) -> None:
    """Print one record."""
    print(json.dumps(load(folder), indent=1))
