"""Files over https, resumed where the last call stopped."""

import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lowmem.errors import Failed
from lowmem.files import sha256

SCHEMES = ("https",)
TIMEOUT = 30  # seconds without an answer
TRIES = 4  # connections per file and call, as long as each brings new bytes
CHUNK = 1 << 18
STALLED, LEAST = 300, 300_000  # a connection that brings fewer bytes in this many seconds is dropped
LARGEST = 1 << 30  # most bytes of a file without a pinned size


def get(source: dict, into: Path, work: Path, show: Callable[[int], None]) -> list[str]:
    """Keys: url (ends with "/" when several files lie below it), files. A file whose pinned hash is there is kept."""
    before = 0
    for name, want in source["files"].items():
        address = source["url"] + urllib.parse.quote(name) if source["url"].endswith("/") else source["url"]
        path = into / name
        if not (want["sha256"] and path.is_file() and sha256(path) == want["sha256"]):
            download(address, path, want, lambda done, before=before: show(before + done))
        before += path.stat().st_size
    return list(source["files"])


def download(address: str, path: Path, want: dict, show: Callable[[int], None]) -> None:
    """Fetch one address into `path`, going on from the `.part` file of an earlier call.

    A part is only continued when its bytes can be trusted to fit: by the pinned hash afterwards, or, where no hash is
    pinned, by the server's ETag. A continued file with the wrong hash is fetched once more from the start.
    """
    part, tag = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.etag")
    if not want["sha256"] and not tag.is_file():
        part.unlink(missing_ok=True)
    resumed = part.is_file()
    for attempt in range(TRIES):
        before = size_of(part)
        problem = transfer(address, part, tag, want, show)
        if problem is None:
            if resumed and want["sha256"] and sha256(part) != want["sha256"]:
                part.unlink()
                resumed = False
                continue
            os.replace(part, path)
            tag.unlink(missing_ok=True)
            return
        if size_of(part) <= before or attempt == TRIES - 1:
            break
        resumed = True
        time.sleep(0.5)
    raise Failed(f"{problem}; {size_of(part)} bytes are kept for the next call" if size_of(part) else problem)


def transfer(address: str, part: Path, tag: Path, want: dict, show: Callable[[int], None]) -> str | None:
    """One connection that appends to the part; returns what went wrong, or None when the file is complete.

    Whatever a server answers becomes one line; only errors of the local disk are raised.
    """
    have = size_of(part)
    headers = {"User-Agent": "lowmem", "Accept-Encoding": "identity"}
    try:
        if have:
            headers["Range"] = f"bytes={have}-"
            if tag.is_file():
                headers["If-Range"] = tag.read_text(encoding="ascii")
        answer = opener().open(urllib.request.Request(checked(address), headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing left to send: the part is complete or not a piece of this file
            if want["sha256"] and sha256(part) == want["sha256"]:
                return None
            forget(part, tag)
        return f"HTTP {error.code} {plain(error.reason)}"
    except Exception as error:  # invalid addresses, answers that are not HTTP, no network: dozens of exception types
        return unreachable(error)
    with answer:
        total, problem = expected(answer, have, want)
        if problem:
            forget(part, tag)
            return problem
        if answer.status == 200:
            have = 0
            remember(answer.headers.get("ETag"), tag)
        problem = received(answer, part, have, total or want["bytes"] or LARGEST, show)
    have = size_of(part)
    if problem:
        if problem.startswith("the server sends more"):
            forget(part, tag)
        return problem
    if total is not None and have < total:
        return f"the connection ended after {have} of {total} bytes"
    return None


def expected(answer: http.client.HTTPResponse, have: int, want: dict) -> tuple[int | None, str | None]:
    """(bytes that the whole file has, as far as known; why this answer is not the one that was asked for, or None)."""
    headers, status = answer.headers, answer.status
    if status != 200 and not (status == 206 and have):
        return None, f"the server answers {status} and not 200 with the file"
    if headers.get("Content-Encoding", "identity") != "identity":
        return (
            None,
            f"the server sends the file encoded as {plain(headers['Content-Encoding'])}, which nobody asked for",
        )
    length = headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
        return None, "the server sends a Content-Length that is not a number"
    total = int(length) if length is not None else None
    if status == 206:
        found = re.fullmatch(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)", headers.get("Content-Range", ""))
        if not found or int(found[1]) != have or (total is not None and int(found[2]) - have + 1 != total):
            return None, "the server sends another piece of the file than the one asked for"
        total = int(found[2]) + 1
        if found[3] != "*" and int(found[3]) != total:
            return None, "the server sends another piece of the file than the one asked for"
    most = want["bytes"] or LARGEST
    if total is not None and total > most:
        return None, f"the server sends more than the expected {most} bytes"
    return total if total is not None else want["bytes"], None


def received(
    answer: http.client.HTTPResponse, part: Path, have: int, most: int, show: Callable[[int], None]
) -> str | None:
    """Append what comes to the part, as it comes; why it ended before its end, or None."""
    since, then = time.monotonic(), have
    with part.open("ab" if have else "wb") as file:
        while True:
            try:
                block = answer.read1(CHUNK)
            except Exception as error:  # what http.client, ssl and sockets raise
                return unreachable(error)
            if not block:
                return None
            file.write(block)
            have += len(block)
            show(have)
            if have > most:
                return f"the server sends more than the expected {most} bytes"
            if time.monotonic() - since > STALLED:
                if have - then < LEAST:
                    return f"the server sent {have - then} bytes in {STALLED} s"
                since, then = time.monotonic(), have


def unreachable(error: Exception) -> str:
    """Why a connection failed or broke, on one line."""
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, urllib.error.URLError):
        return f"no network, or the server cannot be reached ({plain(error.reason)})"
    return f"the connection broke ({type(error).__name__}: {plain(error)})"


def plain(text) -> str:
    """A server's text on one line, without control characters."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in line)[:160]


def forget(part: Path, tag: Path) -> None:
    """Remove a partial download and the note of which version it is of."""
    part.unlink(missing_ok=True)
    tag.unlink(missing_ok=True)


def remember(etag: str | None, tag: Path) -> None:
    """Keep a strong ETag for If-Range; a weak one promises nothing about bytes."""
    if etag and re.fullmatch(r'"[!-~]{1,200}"', etag):
        tag.write_text(etag, encoding="ascii")
    else:
        tag.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 without one."""
    return path.stat().st_size if path.is_file() else 0


def checked(address: str) -> str:
    """The address, if it is https; else Failed."""
    if urllib.parse.urlsplit(address).scheme not in SCHEMES:
        raise Failed(f"{address} is not https")
    return address


class CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return super().redirect_request(req, fp, code, msg, headers, checked(newurl))


def opener() -> urllib.request.OpenerDirector:
    """What opens addresses and follows redirects to https alone."""
    return urllib.request.build_opener(CheckedRedirects())
