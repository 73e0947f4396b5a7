"""The one way to keep a file between runs: whole or absent, with a hash that is checked where the file is read.

Where the hash is kept:

- in a JSON file that is an object: inside it, as "digest" over all its other keys (write_json, read_json);
- in such a file beside it that lists it, as a record lists its curve (write with sealed=False returns what to list; check);
- else in a seal, NAME.sha256, of the form that `sha256sum -c` reads (write, seal, check);
- for a zip file, as torch.save makes them, in a seal that has the hash of all but the entries' content, for which the
  CRC-32 stands that the file itself has (writing_archive, check): a second pass over a gigabyte took as long as writing it.

A large file is read once per process: again only when its inode, size or a date changed.
"""

import contextlib
import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from lowmem import files
from lowmem.errors import Failed, Misuse
from lowmem.files import safe_names

SEAL = ".sha256"
ZIP = "zip-"  # before the hash of what lies around the entries of a zip file
LOCAL = struct.Struct("<26xHH")  # an entry's own header: lengths of its name and of what follows the name
PIECE = 1 << 20


class Damaged(Failed):
    """A kept file is not the one that was written. Who makes such files says whether it is made again."""

    def __init__(self, path: Path, problem: str = "was altered since it was written"):
        super().__init__(f"{path} {problem}")
        self.short = f"{Path(path).name} {problem}"


def write(path: Path, data: bytes, sealed: bool = True) -> dict:
    """Keep these bytes; returns {sha256, bytes}. sealed=False: without a seal, for files that another kept file lists."""
    path, known = Path(path), {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)
    if sealed:
        write_seal(path, {path.name: known["sha256"]})
    return known


@contextlib.contextmanager
def writing_archive(path: Path) -> Iterator[IO[bytes]]:
    """A file to write a zip archive to, which takes the place of `path` when the block ends well, with its seal."""
    path = Path(path)
    with files.atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            yield file
        seal = around_entries(temporary)
    write_seal(path, {path.name: seal})


def write_json(path: Path, value: dict) -> dict:
    """Keep a JSON object with its digest inside; returns what was written. NaN and infinity are refused."""
    sealed = {**value, "digest": digest(value)}
    files.write_json(path, sealed)
    return sealed


def read_json(path: Path) -> dict:
    """The object that write_json kept; Damaged unless it is unaltered."""
    if path.exists() and not path.is_file():
        raise Damaged(path, "is not a regular file")
    try:
        value = files.read_json(path)
    except Failed as error:
        raise Damaged(path, f"cannot be read ({str(error).removeprefix(f'cannot read {path}: ')})") from error
    if not isinstance(value, dict) or value.get("digest") != digest(value):
        raise Damaged(path)
    return value


def digest(value: dict) -> str:
    """sha256 of an object as canonical JSON, without its own digest."""
    rest = {key: item for key, item in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def seal_of(path: Path) -> Path:
    """The path of a file's seal."""
    return path.with_name(path.name + SEAL)


def write_seal(path: Path, hashes: dict[str, str]) -> None:
    """Write the seal of `path`, which may speak of more files of its folder: {name: sha256}."""
    files.write_text(seal_of(path), "".join(f"{value}  {name}\n" for name, value in hashes.items()))


def sealed_hashes(path: Path) -> dict[str, str]:
    """{name: sha256} of the seal of `path`; Damaged when it is missing or no seal."""
    try:
        lines = files.read_text(seal_of(path)).splitlines()
        hashes = {name: value for value, name in (line.split("  ", 1) for line in lines)}
        for name in hashes:
            safe_names.part(name, "a seal")
    except (OSError, ValueError, Misuse) as error:
        message = error.strerror if isinstance(error, OSError) else "no seal"
        raise Damaged(seal_of(path), f"cannot be read ({message})") from error
    if not hashes:
        raise Damaged(seal_of(path), "is empty")
    return hashes


def seal_together(place: Path, paths: list[Path]) -> None:
    """One seal for files of one folder that belong together, named after `place` (figures/lomo_fig1 for its three files)."""
    write_seal(place, {path.name: files.sha256(path) for path in paths})


def check_together(place: Path) -> None:
    """Damaged when a file of seal_together is not as it was written. Without a seal, as in a fresh clone, nothing is known."""
    if seal_of(place).is_file():
        for name, value in sealed_hashes(place).items():
            check(place.with_name(name), value)


def check(path: Path, known: dict | str | None = None) -> str:
    """The sha256 of a file's current bytes, or for a zip file the hash in its seal; read once per process.

    known: what it must be, {sha256, bytes} or the hash alone (default: what its seal says). Damaged when it is another file
    or not there.
    """
    path = Path(path)
    wanted = known or sealed_hashes(path).get(path.name)
    wanted = wanted if isinstance(wanted, dict) else {"sha256": wanted}
    try:
        there = path.stat().st_size == wanted.get("bytes", path.stat().st_size)
        look = whole_archive if str(wanted["sha256"]).startswith(ZIP) else sha256
        found = look(path) if there else None
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    if found is None or found != wanted["sha256"]:
        raise Damaged(path)
    return found


def around_entries(path: Path, entries: bool = False) -> str:
    """The hash of all of a zip file but the content of its entries: headers, padding, directory (with names and sums).

    entries: also compare each entry's content with its CRC-32. Damaged where it differs, or where this is no zip file.
    """
    around, at, end = hashlib.sha256(), 0, os.stat(path).st_size
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
                file.seek(entry.header_offset)
                start = entry.header_offset + LOCAL.size + sum(LOCAL.unpack(file.read(LOCAL.size)))
                if not at <= entry.header_offset < start <= end - entry.compress_size:
                    raise Damaged(path)
                file.seek(at)
                around.update(file.read(start - at))
                at = start + entry.compress_size
                if entries and _sum(file, entry.compress_size) != entry.CRC:
                    raise Damaged(path)
            file.seek(at)
            around.update(file.read())
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError) as error:
        raise Damaged(path) from error
    return ZIP + around.hexdigest()


def _with_entries(path: Path) -> str:
    return around_entries(path, entries=True)


def _sum(file, size: int) -> int:
    """CRC-32 of so many bytes of an open file."""
    found = 0
    for piece in range(0, size, PIECE):
        found = zlib.crc32(file.read(min(PIECE, size - piece)), found)
    return found


_known: dict[tuple, str] = {}


def _once(look: Callable[[Path], str], path: Path) -> str:
    """look(path), once per process for each state of a file: inode, size and dates, of which a change cannot be undone."""
    at = os.stat(path)
    if not stat.S_ISREG(at.st_mode):
        raise Damaged(path, "is not a regular file")  # reading a pipe would block forever
    key = (look, str(path), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    if key not in _known:
        _known[key] = look(path)
    return _known[key]


def sha256(path: Path) -> str:
    """files.sha256, once per process."""
    return _once(files.sha256, path)


def whole_archive(path: Path) -> str:
    """The hash in the seal of a zip file; Damaged unless each entry has its sum. Once per process."""
    return _once(_with_entries, path)
