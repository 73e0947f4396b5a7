"""The record of one run: what ran, on what, with which result. One JSON file that is whole or absent.

Two records are equal when configuration, status, metrics and the curve's loss columns are bitwise equal; times,
machine and memory may differ. A missing number is null, never 0 and never NaN.
"""

import datetime
import hashlib
import json
import math
from pathlib import Path

from lowmem import provenance
from lowmem.errors import Misuse
from lowmem.files import atomic_path, read_json, sha256, write_json

SCHEMA = 1
ARRAYS, CURVE, WEIGHTS = "arrays.npz", "curve.jsonl", "weights.safetensors"
BESIDE = {"curve": CURVE, "arrays": ARRAYS}  # files beside a record whose hashes it holds
FINAL = ("done", "diverged", "oom")  # a failed run is tried again
LOSS_COLUMNS = ("train_loss", "val_loss")


def folder(root: Path, run: dict) -> Path:
    """results/<tier>/<experiment>/<variant>/seed<k>."""
    return Path(root) / "results" / run["tier"] / run["id"]


def start(root: Path, run: dict) -> dict:
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
        "ended": None,
        "metrics": {"final": {}, "best": {}},
        "memory": None,
        "throughput": None,
        "arrays": None,
        "weights": None,
        "resumed_from": [],
    }


def write(path: Path, record: dict) -> dict:
    """Write record.json atomically with NaN and infinity turned into null; returns what was written.

    With the hash of its curve and, last, its own: what is altered later is noticed.
    """
    curve = path / CURVE
    known = {"sha256": sha256(curve), "bytes": curve.stat().st_size} if curve.is_file() else None
    clean = finite({**record, "ended": now(), "curve": known})
    clean["digest"] = digest(clean)
    write_json(path / "record.json", clean)
    return clean


def digest(record: dict) -> str:
    """sha256 of the record as canonical JSON, without its own digest."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def damage(path: Path, record: dict, beside: dict[str, str] = BESIDE) -> str | None:
    """What is altered in a record, or lost or altered beside it; None when all is as it was written."""
    if record.get("digest") not in (None, digest(record)):
        return "record.json was altered"
    for key, name in beside.items():
        if record.get(key) and not whole(path / name, record[key]):
            return f"{name} was altered or lost"
    return None


def whole(path: Path, known: dict) -> bool:
    """Whether a file beside a record is the one that the record speaks of."""
    return path.is_file() and path.stat().st_size == known["bytes"] and sha256(path) == known["sha256"]


def reusable(root: Path, run: dict) -> dict | None:
    """The run's record if it is final and neither configuration nor code nor data changed since, else None."""
    path = folder(root, run) / "record.json"
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        same = record["schema"] == SCHEMA and record["status"] in FINAL and record["config_hash"] == run["config_hash"]
        same = same and damage(path.parent, record) is None and not provenance.drifted(root, record["code"]["files"])
    except Exception:  # a damaged or foreign file is no record
        return None
    return record if same else None


def write_arrays(path: Path, arrays: dict | None) -> dict | None:
    """Matrices and curves too large for JSON as arrays.npz beside the record: {name: numpy array} -> {sha256, bytes}."""
    target = path / ARRAYS
    if not arrays:
        target.unlink(missing_ok=True)
        return None
    import numpy as np

    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # members carry no time: equal arrays, equal bytes
    return {"sha256": sha256(target), "bytes": target.stat().st_size}


def write_weights(path: Path, tensors: dict) -> dict:
    """Final weights as weights.safetensors beside the record: {name: tensor} -> {sha256, bytes}.

    They are large and not kept for good: who deletes them has the run made once more when another one needs them.
    """
    import safetensors.torch

    target = path / WEIGHTS
    with atomic_path(target) as temporary:
        safetensors.torch.save_file(tensors, temporary)
    return {"sha256": sha256(target), "bytes": target.stat().st_size}


def has_weights(path: Path, record: dict) -> bool:
    """Whether the weights that a record speaks of are there, as they were written."""
    return bool(record.get("weights")) and whole(path / WEIGHTS, record["weights"])


def read_arrays(path: Path, record: dict) -> dict:
    """{name: numpy array} of a record's arrays.npz; empty when the record has none, or the file is lost or damaged."""
    if not record.get("arrays") or not whole(path / ARRAYS, record["arrays"]):
        return {}
    import numpy as np

    with np.load(path / ARRAYS, allow_pickle=False) as loaded:
        return dict(loaded)


def finite(value):
    """The value with every non-finite float replaced by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
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
        one, other = read_json(a / name / "record.json"), read_json(b / name / "record.json")
        for key in ("config", "status", "metrics", "arrays"):
            if one.get(key) != other.get(key):
                lines.append(f"{prefix}{key}: {json.dumps(one.get(key))} is not {json.dumps(other.get(key))}")
        curves = [losses(top / name / "curve.jsonl") for top in (a, b)]
        if len(curves[0]) != len(curves[1]):
            lines.append(f"{prefix}curve: {len(curves[0])} lines, not {len(curves[1])}")
        elif curves[0] != curves[1]:
            at = next(i for i, (left, right) in enumerate(zip(*curves)) if left != right)
            lines.append(f"{prefix}curve line {at + 1}: {curves[0][at]} is not {curves[1][at]}")
    return lines


def losses(path: Path) -> list[dict]:
    """Step and loss columns of a curve; empty when there is none."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: row.get(key) for key in ("step", *LOSS_COLUMNS)} for row in rows]


def show(folder: Path) -> None:
    """Print one record."""
    print(json.dumps(read_json(Path(folder) / "record.json"), indent=1))
