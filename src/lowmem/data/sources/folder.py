"""Files that the user already has: copied from a local folder, so that later changes there cannot change a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

from lowmem.errors import Misuse


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: folder. All its files are copied, subfolders too; hidden files and links are left out."""
    folder = Path(source["folder"])
    if not folder.is_dir():
        raise Misuse(f"{folder} is not a folder; give --folder DIR")
    origin, target = folder.resolve(), into.resolve()
    if origin.is_relative_to(target) or target.is_relative_to(origin):
        raise Misuse(
            f"{folder} is, contains or lies inside {into}, which is about to be replaced; give a folder elsewhere"
        )
    names, done = [], 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if name.as_posix() == "fetched.json":  # a raw folder copied from another machine has one
            continue
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / name)
        names.append(name.as_posix())
        done += path.stat().st_size
        show(done)
    if not names:
        raise Misuse(f"{folder} holds no files")
    for name in names:  # only now that all are copied
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).replace(into / name)
    return names
