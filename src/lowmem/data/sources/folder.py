"""Files that the user already has: copied from a local folder, so that later changes there cannot change a run."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from lowmem.data.sources import client
from lowmem.errors import Misuse


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: folder. All its files are copied, subfolders too; hidden files and links are left out."""
    folder = Path(source["folder"])
    origin, target = folder.resolve(), into.resolve()
    if origin.is_relative_to(target) or target.is_relative_to(origin):
        raise Misuse(
            f"{folder} is, contains or lies inside {into}, which is about to be replaced; give a folder elsewhere"
        )
    names, done, paths = [], 0, taken(folder)
    client.need_space(work, sum(path.stat().st_size for path in paths))
    for path in paths:
        name = path.relative_to(folder)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / name)
        names.append(name.as_posix())
        done += path.stat().st_size
        show(done)
    if not names:
        raise Misuse(f"{folder} holds no files")
    for name in names:  # only now that all are copied
        make_way(into, Path(name))
        (work / name).replace(into / name)
    return names


def taken(folder: Path) -> list[Path]:
    """The files that are copied, in order; Misuse for a name that no record could hold."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if name.parts[0] == "fetched.json":  # a raw folder copied from another machine has one
            continue
        if re.search(r"[\ud800-\udfff]", str(name)):  # how Python shows bytes that are no UTF-8
            raise Misuse(f"{folder}: the file name {str(name)!a} is not UTF-8; rename it")
        found.append(path)
    return found


def make_way(into: Path, name: Path) -> None:
    """Make the folder of a file; what an earlier copy had in the places of its folders, or a folder in its own, goes."""
    for parent in reversed(name.parents[:-1]):
        if os.path.lexists(into / parent) and not (into / parent).is_dir():
            (into / parent).unlink()
    (into / name).parent.mkdir(parents=True, exist_ok=True)
    if (into / name).is_dir() and not (into / name).is_symlink():
        shutil.rmtree(into / name)
