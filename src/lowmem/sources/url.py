"""Files over https, resumed where the last call stopped."""

import http.client
import os
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
    """One connection that appends to the part; returns what went wrong, or None when the file is complete."""
    have = size_of(part)
    headers = {"User-Agent": "lowmem", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file():
            headers["If-Range"] = tag.read_text()
    try:
        with opener().open(urllib.request.Request(checked(address), headers=headers), timeout=TIMEOUT) as answer:
            if answer.status != 206:
                have = 0
                remember(answer.headers.get("ETag"), tag)
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length is not None else want["bytes"]
            with part.open("ab" if have else "wb") as file:
                while block := answer.read(CHUNK):
                    file.write(block)
                    have += len(block)
                    show(have)
                    if want["bytes"] and have > want["bytes"]:
                        break
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the part is complete or not a piece of this file
            if want["sha256"] and sha256(part) == want["sha256"]:
                return None
            part.unlink()
            tag.unlink(missing_ok=True)
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"no network, or the server cannot be reached ({error.reason})"
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return f"the connection broke ({type(error).__name__}: {error})"
    if want["bytes"] and have > want["bytes"]:
        part.unlink()
        tag.unlink(missing_ok=True)
        return f"the server sends more than the expected {want['bytes']} bytes"
    if total is not None and have < total:
        return f"the connection ended after {have} of {total} bytes"
    return None


def remember(etag: str | None, tag: Path) -> None:
    """Keep a strong ETag for If-Range; a weak one promises nothing about bytes."""
    if etag and not etag.startswith("W/"):
        tag.write_text(etag)
    else:
        tag.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def checked(address: str) -> str:
    if urllib.parse.urlsplit(address).scheme not in SCHEMES:
        raise Failed(f"{address} is not https")
    return address


class CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return super().redirect_request(req, fp, code, msg, headers, checked(newurl))


def opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(CheckedRedirects())
