"""Archived records: all runs of one experiment in one tier as data/records/<tier>/<experiment>.zip.

They redraw a report without training, and let an exhibit show what a longer run or a higher tier gave. A zip file holds
record.json, curve.jsonl and arrays.npz of each run as they were written; equal records give equal bytes.
"""

import functools
import tempfile
import zipfile
from pathlib import Path

from lowmem import safe_names
from lowmem.errors import Failed, Misuse
from lowmem.files import atomic_path, sha256
from lowmem.record import ARRAYS, CURVE, FINAL, damage, load


def archive(root: Path, name: str) -> Path:
    """data/records/<tier>/<experiment>.zip of "tier/experiment"."""
    tier, _, experiment = str(name).partition("/")
    parts = [safe_names.part(part, f"records {name}: tier/experiment") for part in (tier, experiment)]
    return safe_names.inside(Path(root) / "data/records", *parts[:1], f"{parts[1]}.zip")


def names(root: Path, tier: str = "*") -> list[str]:
    """Every "tier/experiment" of which records are kept."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in (Path(root) / "data/records").glob(f"{tier}/*.zip"))


def keep(root: Path, name: str) -> int:
    """Archive the finished records of "tier/experiment"; returns how many. Misuse without any, Failed for a damaged one."""
    target, source, files = archive(root, name), Path(root) / "results" / name, []
    for path in sorted(source.rglob("record.json")):
        record = load(path.parent)
        if record["status"] not in FINAL:
            continue
        if problem := damage(path.parent, record):
            raise Failed(f"{path.parent}: {problem}; delete that folder and run it again")
        files += [f for f in (path, path.parent / CURVE, path.parent / ARRAYS) if f.is_file()]
    if not files:
        raise Misuse(f"no finished record in {source}; name them as tier/experiment, e.g. laptop/gpt2_sizes")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(source).as_posix(), (1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            zipped.writestr(member, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return sum(file.name == "record.json" for file in files)


def folder(root: Path, name: str) -> Path:
    """The archived runs of "tier/experiment" unpacked in results/kept/<tier>/<experiment>; an empty place without any."""
    path, place = archive(root, name), Path(root) / "results/kept" / name
    if not path.is_file():
        return place
    hashed = _sha256(path, path.stat().st_mtime_ns)
    mark = place / ".archive"
    if mark.is_file() and mark.read_text() == hashed:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as temporary:
        fresh = Path(temporary) / "fresh"
        try:
            with zipfile.ZipFile(path) as zipped:
                zipped.extractall(fresh)  # drops ".." and drives from member names
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError) as error:
            raise Failed(f"{path} is damaged ({error}); get it again, e.g. with git checkout") from error
        (fresh / ".archive").write_text(hashed)
        if place.exists():
            place.rename(Path(temporary) / "old")
        fresh.rename(place)
    return place


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    return sha256(path)
