"""The one way to take a name that becomes part of a path: from a file, a command line, the environment, an archive."""

import errno
import os
import re
import stat
from pathlib import Path

from lowmem.errors import Misuse

PART = re.compile(r"[A-Za-z0-9_+@][A-Za-z0-9_.+@-]{0,149}")  # neither ".", "..", a hidden name, nor a separator


def part(name, what: str) -> str:
    """The name of one file or folder, as it is; Misuse, naming `what` it is of, when it could be more than that."""
    if not isinstance(name, str) or not PART.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:76]}..."
        raise Misuse(
            f"{what}: {shown} is not a plain name; use letters, digits, _ . + @ and -, and begin with none of . and -"
        )
    return name


def relative(name, what: str) -> str:
    """A name with folders in front, each of them a plain one: a file of a data set, "tier/experiment"."""
    if not isinstance(name, str):
        raise Misuse(f"{what}: {repr(name)[:80]} is not a name")
    return "/".join(part(one, what) for one in name.split("/"))


def inside(top: Path, *parts: str) -> Path:
    """top/parts..., which must lie below `top` also where links are followed; Misuse when it does not."""
    path = Path(top, *parts)
    if not path.resolve().is_relative_to(Path(top).resolve()) or path.resolve() == Path(top).resolve():
        raise Misuse(f"{path} leads out of {top}; remove the link, or use another name")
    return path


def at_home(name) -> Path:
    """A folder that a person names, with ~ and ~user for theirs; Misuse where there is no such person, or no such name."""
    if (
        "\0" in str(name)
        or max(map(len, str(name).encode("utf-8", "surrogatepass").split(b"/"))) > 255
        or len(str(name)) > 4000
    ):
        raise Misuse(f"{str(name)[:80]!r}... is not a folder name; write a shorter one without unusual characters")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise Misuse(f"{name}: there is no such home folder here; write the whole path") from error


def opened(path: Path, flags: int):
    """An opener for open() that follows no link in the place of the file itself, and waits for no pipe."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return handle
