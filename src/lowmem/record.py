"""The record of one run: what ran, on what, with which result. One JSON file that is whole or absent.

Two records are equal when configuration, status, metrics and the curve's loss columns are bitwise equal; times,
machine and memory may differ. A missing number is null, never 0 and never NaN.
"""

import ast
import datetime
import functools
import importlib.metadata
import io
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import lowmem
from lowmem import kept_files
from lowmem.errors import Misuse
from lowmem.files import sha256

SCHEMA = 1
ARRAYS, CURVE = "arrays.npz", "curve.jsonl"
BESIDE = {"curve": CURVE, "arrays": ARRAYS}  # files beside a record whose hashes it holds
FINAL = ("done", "diverged", "oom")  # a failed run is tried again
PACKAGE = Path(lowmem.__file__).parent
# Modules that route runs, files and messages; what they decide stands in the configuration or in the data's hashes.
ROUTING = ("errors", "files", "kept_files", "record", "progress", "ticker", "experiments", "prepare")
PACKAGES = ("torch", "numpy", "transformers", "sentencepiece")
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
        "code": {**commit(root), "files": code_files(run["config"])},
        "packages": packages(),
        "device": None,
        "world_size": 1,
        "started": now(),
        "ended": None,
        "metrics": {"final": {}, "best": {}},
        "memory": None,
        "throughput": None,
        "arrays": None,
        "resumed_from": [],
        "other_means": [],
    }


def write(path: Path, record: dict) -> dict:
    """Write record.json atomically with NaN and infinity turned into null; returns what was written.

    With the hash of its curve and, last, its own: what is altered later is noticed. Damaged when the curve on the disk is
    no longer what the run wrote.
    """
    curve, known = path / CURVE, record.get("curve")
    if known:
        kept_files.check(curve, known)
    there = {"sha256": kept_files.sha256(curve), "bytes": curve.stat().st_size} if curve.is_file() else None
    return kept_files.write_json(path / "record.json", finite({**record, "ended": now(), "curve": there}))


def load(folder: Path) -> dict:
    """The record of a run's folder; Failed when it is missing or altered."""
    return kept_files.read_json(Path(folder) / "record.json")


def damage(path: Path, record: dict, beside: dict[str, str] = BESIDE) -> str | None:
    """What is lost or altered beside a record; None when all is as it was written."""
    for key, name in beside.items():
        if record.get(key) and not whole(path / name, record[key]):
            return f"{name} was altered or lost"
    return None


def whole(path: Path, known: dict) -> bool:
    """Whether a file beside a record is the one that the record speaks of."""
    try:
        return bool(kept_files.check(path, known))
    except kept_files.Damaged:
        return False


def reusable(root: Path, run: dict) -> dict | None:
    """The run's record if it is final and neither configuration nor code nor data changed since, else None."""
    path = folder(root, run) / "record.json"
    if not path.is_file():
        return None
    try:
        record = load(path.parent)
        files = record["code"]["files"]
        same = record["schema"] == SCHEMA and record["status"] in FINAL and record["config_hash"] == run["config_hash"]
        same = same and damage(path.parent, record) is None
    except Exception:  # a damaged or foreign file is no record
        return None
    return record if same and all(hash_of(root, name) == value for name, value in files.items()) else None


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


def read_arrays(path: Path, record: dict) -> dict:
    """{name: numpy array} of a record's arrays.npz; empty when the record has none, or the file is lost or damaged."""
    if not record.get("arrays") or not whole(path / ARRAYS, record["arrays"]):
        return {}
    import numpy as np

    with np.load(path / ARRAYS, allow_pickle=False) as loaded:
        return dict(loaded)


def hash_of(root: Path, name: str) -> str | None:
    """sha256 of a file as it is now, as a record names it: code as src/..., anything else below the root; None without it."""
    path = PACKAGE.parent / name.removeprefix("src/") if name.startswith("src/") else Path(root) / name
    return kept_files.sha256(path) if path.is_file() else None


def names(root: Path, paths: Iterable[Path]) -> list[str]:
    """Paths as a record names them: relative to the root where they lie below it, e.g. not a user's own questions."""
    paths = [Path(path) for path in paths]
    return [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]


def finite(value):
    """The value with every non-finite float replaced by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def code_files(config: dict) -> dict[str, str]:
    """{src/lowmem/...: sha256} of the modules that this run's task, model and optimizer reach by import."""
    return {str("src" / path.relative_to(PACKAGE.parent)): sha256(path) for path in code_paths(config)}


def code_paths(config: dict) -> list[Path]:
    """Those files. C sources beside a reached module count too.

    Read from the source, not from sys.modules, so that a change to one optimizer does not invalidate runs of another
    that happened to share a process.
    """
    names = ["train", f"tasks.{config['task']}"]
    names += [
        f"{kind}.{config[key]['name']}" for key, kind in (("model", "models"), ("optimizer", "optim")) if key in config
    ]
    entries = [PACKAGE / f"{name.replace('.', '/')}.py" for name in names]
    entries += [PACKAGE / "optim" / "__init__.py"] if "optimizer" in config else []
    found = {path for path in reach(entries, ROUTING) if path.parent != PACKAGE or path.stem not in ROUTING}
    beside = {folder for folder in {path.parent for path in found} if folder != PACKAGE}
    return sorted(found.union(*(folder.glob("*.c") for folder in beside)))


def reach(entries: list[Path], leaves: tuple[str, ...]) -> set[Path]:
    """The existing ones of `entries` and what they import, directly or not; imports of modules in `leaves` do not count."""
    waiting, found = [path for path in entries if path.is_file()], set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [] if path.parent == PACKAGE and path.stem in leaves else imported(path)
    return found


@functools.cache
def imported(path: Path) -> list[Path]:
    """Files of this package that a module names in import statements, at top level or inside functions."""
    found = []
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            if module.startswith("lowmem."):
                place = PACKAGE.joinpath(*module.split(".")[1:])
                found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found


def statements(body: list) -> Iterator[ast.AST]:
    """All statements of a syntax tree, those inside others too. Unlike ast.walk it leaves out expressions, which are many."""
    for node in body:
        yield node
        for part in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []))


def commit(root: Path) -> dict:
    """{commit, dirty} of the checkout; null without git. dirty looks at the code, not at data, reports or notes."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--", "src", "workflow", "Snakefile") if head else None
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def packages() -> dict[str, str | None]:
    """Versions of Python and of the packages that compute; null when not installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


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
