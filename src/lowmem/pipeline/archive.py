"""Archived records: all runs of one experiment in one tier as data/records/<tier>/<experiment>.zip.

They redraw a report without training, and let an exhibit show what a longer run or a higher tier gave. A zip file holds
record.json, curve.jsonl and arrays.npz of each run as they were written; equal records give equal bytes.
"""

import atexit
import functools
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Failed, Misuse
from lowmem.files import atomic_path, safe_names, sha256
from lowmem.pipeline.record import ARRAYS, CURVE, FINAL, KEPT, integrity_problem, load

MARK = ".archive"  # what is unpacked, by its hash
LARGEST = 2 << 30  # bytes of an archive once it is unpacked


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
        if problem := integrity_problem(path.parent, record):
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


@functools.cache
def home(root: Path) -> Path:
    """Where archives are unpacked: results/kept, or, for a read-only checkout, a temporary folder that is removed with this
    process, so that a reviewer can verify a read-only copy."""
    own = Path(root) / "results" / KEPT
    existing = next(place for place in (own, *own.parents) if place.exists())
    if os.access(existing, os.W_OK):
        return own
    temporary = tempfile.mkdtemp(prefix="lowmem-records-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def folder(root: Path, name: str) -> Path:
    """The archived runs of "tier/experiment" unpacked in home()/<tier>/<experiment>; an empty folder without any."""
    path, place = archive(root, name), home(Path(root)) / name
    if not path.is_file():
        if place.is_dir() and not place.is_symlink():  # unpacked from an archive that is gone
            shutil.rmtree(place)
        return place
    hashed = kept_files.sha256(path)
    if is_unpacked(place, hashed):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as temporary:
        fresh = Path(temporary) / "fresh"
        try:
            with zipfile.ZipFile(path) as zipped:
                if sum(member.file_size for member in zipped.infolist()) > LARGEST:
                    raise Failed(f"{path} unpacks to more than {LARGEST >> 20} MB; restore it, e.g. with git checkout")
                zipped.extractall(fresh)  # drops ".." and drives from member names, and bytes above a member's size
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, RuntimeError) as error:
            raise Failed(f"{path} is damaged ({error}); restore it, e.g. with git checkout") from error
        files = {p.relative_to(fresh).as_posix(): sha256(p) for p in sorted(fresh.rglob("*")) if p.is_file()}
        kept_files.write_json(fresh / MARK, {"archive": hashed, "files": files})
        if os.path.lexists(place):
            place.rename(Path(temporary) / "old")
        fresh.rename(place)
    return place


def is_unpacked(place: Path, archive: str) -> bool:
    """Whether the archive with this hash is unpacked there, every file as it was written."""
    try:
        mark = kept_files.read_json(place / MARK)
        there = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()} - {MARK}
        same = mark["archive"] == archive and set(mark["files"]) == there
        return same and all(kept_files.check(place / name, known) for name, known in mark["files"].items())
    except (kept_files.Damaged, KeyError, TypeError, AttributeError):
        return False
