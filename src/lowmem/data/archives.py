"""Read members of downloaded archives (wheel, zip, tar, deb) without extracting anything to disk.

Nothing from an archive is run, and no member's name is ever used as a path on this machine. Still, a member whose
name climbs out of the archive is refused: a file that carries one is not the file that was pinned. Links are never
followed; asking for a member that is a link is an error.
"""

import contextlib
import fnmatch
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowmem.errors import Failed

BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)
BROKEN += (RuntimeError, NotImplementedError, OverflowError)  # encryption, unknown compression methods, invalid sizes
LARGEST = 2 << 30  # bytes that are read whole: of one file, or of those that a pattern matches


def is_archive(path: Path) -> bool:
    """Whether a file is an archive that members() reads, by its ending."""
    return Path(path).name.endswith((".whl", ".zip", ".tgz", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".deb"))


def members(path: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """Yield (name, open binary file) for every file in the archive, in its own order; None stands for a link.

    Names are normalised ("./usr/a" is "usr/a"). Read a member before asking for the next: archives are streamed.
    Raises Failed for a damaged archive, an unknown format, or a name that leaves the archive ("..", absolute).
    """
    path = Path(path)
    if path.name.endswith((".whl", ".zip")):
        found = zip_members(path)
    elif path.name.endswith(".deb"):
        found = deb_members(path)
    elif is_archive(path):
        found = tar_members(path.open("rb"))
    else:
        raise Failed(f"{path} is not an archive that can be read here (wheel, zip, tar, deb)")
    with damage_as_failed(path):
        for name, stream in found:
            yield safe(name, path), stream


@contextlib.contextmanager
def damage_as_failed(path: Path) -> Iterator[None]:
    """Turn what the archive modules raise for damaged files into one line; a full disk and the like pass through."""
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise Failed(f"{path} is damaged: {error}; delete it and fetch again") from error


def safe(name: str, path: Path) -> str:
    """The member's name without leading './'; Failed when it points outside the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or ".." in parts or not parts or ":" in parts[0] or "\0" in name:
        raise Failed(f"{path} holds the member {name!r}, which points outside the archive; do not use this file")
    return "/".join(parts)


def zip_members(path: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """(name, stream) of each file of a zip or wheel; None in place of the stream for a symbolic link."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if (info.external_attr >> 16) & 0o170000 == 0o120000:  # the unix mode says symbolic link
                yield info.filename, None
                continue
            with archive.open(info) as stream:
                yield info.filename, stream


def tar_members(file: BinaryIO) -> Iterator[tuple[str, BinaryIO | None]]:
    """Members of a tar stream of any compression; directories are left out, links and devices yield None."""
    with file, tarfile.open(fileobj=file, mode="r|*", tarinfo=WholeTarInfo) as archive:
        for info in archive:
            if info.size < 0:
                raise tarfile.ReadError(f"an entry of {info.size} bytes")
            if not info.isdir():
                yield info.name, archive.extractfile(info) if info.isreg() else None


class WholeTarInfo(tarfile.TarInfo):
    """tarfile mistakes a truncated header for the end of the archive; here it counts as damage."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except (tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError("it ends before its end-of-archive marker") from error


def deb_members(path: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """Members of data.tar inside a Debian package: an ar archive of three files (deb(5))."""
    with path.open("rb") as file:
        for name, size in ar_entries(file, path):
            if name.startswith("data.tar"):
                if name.endswith(".zst"):
                    raise Failed(f"{path} is compressed with zstd, which Python cannot read; take another source")
                yield from tar_members(io.BufferedReader(Section(file, size)))
                return
    raise Failed(f"{path} holds no data.tar; it is not a Debian package")


def ar_entries(file: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Yield (name, size) of each ar entry with the file placed at the entry's first byte."""
    if file.read(8) != b"!<arch>\n":
        raise Failed(f"{path} is not a Debian package (wrong first bytes)")
    while header := file.read(60):  # name 16, mtime 12, owner 6, group 6, mode 8, size 10, magic 2
        if len(header) < 60 or header[58:] != b"`\n":
            raise Failed(f"{path} is damaged: bad ar header; delete it and fetch again")
        size, start = int(header[48:58]), file.tell()
        if size < 0:
            raise Failed(f"{path} is damaged: an entry of {size} bytes; delete it and fetch again")
        yield header[:16].decode("ascii").strip().rstrip("/"), size
        file.seek(start + size + size % 2)  # entries start at even offsets


class Section(io.RawIOBase):
    """The next `size` bytes of an open file, as a file of their own."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(min(len(buffer), self.left))
        self.left -= len(data)
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def opened(raw: Path, pattern: str) -> Iterator[BinaryIO]:
    """Open the one file of a raw folder, plain or inside an archive, that matches the pattern (see `matching`)."""
    for _name, stream in matching(raw, pattern):
        with damage_as_failed(raw):
            yield stream
        return
    raise Failed(f"nothing in {raw} matches {pattern!r}; delete that folder and fetch again")


def read(raw: Path, pattern: str) -> dict[str, bytes]:
    """All files of a raw folder that match, plain or inside its archives: {name: bytes}, sorted by name."""
    found, left = {}, LARGEST
    with damage_as_failed(raw):
        for name, stream in matching(raw, pattern):
            found[name] = whole(stream, name, left)
            left -= len(found[name])
    if not found:
        raise Failed(f"nothing in {raw} matches {pattern!r}; delete that folder and fetch again")
    return dict(sorted(found.items()))


def whole(stream: BinaryIO, name: str, most: int = LARGEST) -> bytes:
    """All bytes of a file; Failed for more than `most`, which a small archive can hold packed."""
    blocks, size = [], 0
    while block := stream.read(1 << 20):
        size += len(block)
        if size > most:
            raise Failed(f"{name} brings it to more than {LARGEST >> 30} GB unpacked; do not use it")
        blocks.append(block)
    return b"".join(blocks)


def unpacked(packed: bytes, name: str) -> bytes:
    """What a gzip holds; Failed where it is damaged, or holds more than `whole` reads."""
    with damage_as_failed(Path(name)):
        return whole(gzip.GzipFile(fileobj=io.BytesIO(packed)), name)


def matching(raw: Path, pattern: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yield (name, stream) for files of the folder and members of its archives; the pattern is matched on "/" + name.

    So the same pattern finds `package/data/1.txt` in an npm archive and `data/1.txt` in a folder of the user.
    """
    for path in sorted(p for p in Path(raw).rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(raw).as_posix()
        if is_archive(path):
            for member, stream in members(path):
                if fnmatch.fnmatchcase("/" + member, pattern):
                    if stream is None:
                        raise Failed(f"{path}: the member {member!r} is a link, and links are not followed")
                    yield member, stream
        elif fnmatch.fnmatchcase("/" + name, pattern):
            with path.open("rb") as stream:
                yield name, stream
