"""Files that are either whole or absent: atomic writes, hashes, YAML and JSON with one-line errors."""

import contextlib
import copy
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowmem import progress
from lowmem.errors import Failed, Misuse, one_line
from lowmem.files import safe_names, strict_yaml

LARGEST = 1 << 28  # bytes of a JSON file


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    A kill or a power failure at any moment leaves `path` as it was before (and perhaps a `.tmp` file that the next call
    ignores). The user's umask decides who may read it. A link in its place is replaced, not followed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        synced(temporary)
        os.replace(temporary, path)
        synced(path.parent)
    except OSError as error:
        advice = "remove that folder" if isinstance(error, IsADirectoryError) else "free space or check permissions"
        raise Failed(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk before anything relies on them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write text atomically (see atomic_path)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Write JSON atomically; NaN and infinity are refused, since a missing value is null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a file, UTF-8; ValueError for more than `most` bytes, as of a device that never ends."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MB")
    return data.decode("utf-8")


def read_json(path: Path, by_hand: bool = False):
    """Read JSON; Failed names the file when it is absent or damaged. NaN and infinity are not numbers.

    by_hand: of a file that a person wrote, where a duplicate key is a mistake.
    """
    pairs = {"object_pairs_hook": once} if by_hand else {}
    try:
        return parsed_json(read_text(path), **pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise Failed(f"cannot read {path}: {one_line(error, 300)}") from error


def parsed_json(text: str | bytes, **pairs):
    """The value of a JSON text; ValueError for NaN, infinity and lone surrogates, which later steps could not handle."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    value = json.loads(text, parse_constant=no_number, **pairs)
    if re.search(r"\\u[dD][89a-fA-F]", text):  # a valid pair of escapes decodes to one character
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def once(pairs: list[tuple]) -> dict:
    """A dictionary of pairs; ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)[:80]!r}")
    return found


def no_number(text: str):
    """For json: refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{text} is not a valid number")


@functools.cache
def parsed_yaml(text: str):
    """The value of a YAML text; one process reads the same few files hundreds of times."""
    return strict_yaml.load(text) or {}


def read_yaml(path: Path):
    """Read YAML; Misuse names file and line when it is absent, malformed, or refused by strict_yaml.py."""
    try:
        return copy.deepcopy(parsed_yaml(read_text(path, 4 * strict_yaml.LARGEST)))
    except OSError as error:
        raise Misuse(f"cannot read {path}: {error.strerror}") from error
    except ModuleNotFoundError:  # of the YAML package, which only the pipeline needs
        raise
    except (
        Exception
    ) as error:  # invalid dates, tags of other languages, bytes that are not UTF-8: yaml raises many types
        raise Misuse(f"{path} is not valid YAML: {one_line(error, 300)}") from error


def fix_future_mtimes(paths: Iterable[Path], slack: float = 3600) -> list[Path]:
    """Set files dated more than `slack` seconds in the future to now, and return them.

    A clock that was wrong once leaves such files, and Snakemake refuses what is made from them as older than its input.
    """
    now = time.time()
    found = [path for path in paths if path.is_file() and path.stat().st_mtime > now + slack]
    for path in found:
        os.utime(path, (now, now))
    return found


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the folder's lock file; a second process waits. The kernel drops the lock of a process that dies."""
    with lock_file(target) as file:
        if not taken(file):
            progress.say(f"waiting: another process writes {target}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_file(target: Path):
    """The open lock file of a folder. What is in its place is never emptied, and a link is not followed."""
    path = target.parent / f".{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", opener=safe_names.opened)
    except OSError as error:
        message = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise Failed(f"cannot lock {path}: {message}; remove it, or check permissions and limits") from error


def taken(file) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
