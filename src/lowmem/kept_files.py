"""The one way to keep a file between runs: whole or absent, with a hash that is checked where the file is read.

Where the hash stands:

- in a JSON file that is an object: inside it, as "digest" over all its other keys (write_json, read_json);
- in such a file beside it that lists it, as a record lists its curve (write with seal=False returns what to list; check);
- else in a seal, NAME.sha256, of the form that `sha256sum -c` reads (write, seal, check).

A large file is hashed once per process: again only when its inode, size or a date changed.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lowmem import files
from lowmem.errors import Failed

SEAL = ".sha256"
ASIDE = 1 << 16  # bytes from which it pays to hash in a second thread while the first one writes


class Damaged(Failed):
    """A kept file is not the one that was written. Who makes such files says whether it is made again."""

    def __init__(self, path: Path, problem: str = "was altered since it was written"):
        super().__init__(f"{path} {problem}")
        self.short = f"{Path(path).name} {problem}"


class Hashed:
    """A file that is written from its start to its end, and hashed meanwhile."""

    def __init__(self, file, pool: concurrent.futures.Executor):
        self.file, self.pool, self.hash, self.bytes = file, pool, hashlib.sha256(), 0

    def write(self, data) -> int:
        """Write and hash; large pieces are hashed while they are written."""
        view = memoryview(data).cast("B")
        self.bytes += len(view)
        if len(view) < ASIDE:
            self.hash.update(view)
            return self.file.write(view)
        hashing = self.pool.submit(self.hash.update, view)
        try:
            return self.file.write(view)
        finally:
            hashing.result()  # before the caller may change what it handed over

    def flush(self) -> None:
        """As the file's."""
        self.file.flush()

    def known(self) -> dict:
        """{sha256, bytes} of what was written."""
        return {"sha256": self.hash.hexdigest(), "bytes": self.bytes}


@contextlib.contextmanager
def writing(path: Path, sealed: bool = True) -> Iterator[Hashed]:
    """A file to write to that takes the place of `path` when the block ends well, with its seal.

    sealed=False: without one, for files that another kept file lists; their known() is what it lists.
    """
    path = Path(path)
    with (
        files.atomic_path(path) as temporary,
        open(temporary, "wb") as raw,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        made = Hashed(raw, pool)
        yield made
    if sealed:
        write_seal(path, {path.name: made.hash.hexdigest()})


def write(path: Path, data: bytes, sealed: bool = True) -> dict:
    """Keep these bytes; returns {sha256, bytes}."""
    with writing(path, sealed) as file:
        file.write(data)
    return file.known()


def write_json(path: Path, value: dict) -> dict:
    """Keep a JSON object with its digest inside; returns what was written. NaN and infinity are refused."""
    sealed = {**value, "digest": digest(value)}
    files.write_json(path, sealed)
    return sealed


def read_json(path: Path) -> dict:
    """The object that write_json kept; Damaged unless it is unaltered."""
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
    """Where the seal of a file lies."""
    return path.with_name(path.name + SEAL)


def write_seal(path: Path, hashes: dict[str, str]) -> None:
    """Write the seal of `path`, which may speak of more files of its folder: {name: sha256}."""
    files.write_text(seal_of(path), "".join(f"{value}  {name}\n" for name, value in hashes.items()))


def sealed_hashes(path: Path) -> dict[str, str]:
    """{name: sha256} of the seal of `path`; Damaged when it is missing or no seal."""
    try:
        lines = files.read_text(seal_of(path)).splitlines()
        hashes = {name: value for value, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
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
    """The sha256 of a file's bytes as they are now, computed once per process.

    known: what it must be, {sha256, bytes} or the hash alone (default: what its seal says). Damaged when it is another file
    or not there.
    """
    path = Path(path)
    wanted = known or sealed_hashes(path).get(path.name)
    wanted = wanted if isinstance(wanted, dict) else {"sha256": wanted}
    try:
        there = path.stat().st_size == wanted.get("bytes", path.stat().st_size)
        found = sha256(path) if there else None
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    if found is None or found != wanted["sha256"]:
        raise Damaged(path)
    return found


_hashes: dict[tuple, str] = {}


def sha256(path: Path) -> str:
    """files.sha256, once per process for each state of a file: inode, size and dates, of which a change cannot be undone."""
    at = os.stat(path)
    key = (str(path), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = files.sha256(path)
    return _hashes[key]
