"""Run a package client as a downloader: quiet, in a scratch folder, with its reason when it fails."""

import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lowmem.errors import Failed

STALLED = 300  # seconds without a byte before a client is killed
NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|resolve|Temporary failure|ECONN|ENOTFOUND|EAI_AGAIN|ETIMEDOUT"
    r"|Connection refused|Could not connect|Network is unreachable|Failed to fetch|Unable to connect",
    re.IGNORECASE,
)


def need(name: str) -> str:
    """Full path of a program on PATH, or Failed."""
    found = shutil.which(name)
    if not found:
        raise Failed(f"{name} is not installed")
    return found


def run(command: list[str], work: Path, show: Callable[[int], None]) -> None:
    """Run the command in `work`; Failed holds the last error it printed, OSError(ENOSPC) a full disk.

    The client's scratch files go to `work` too, so that their size shows the progress and nothing stays behind.
    """
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            watch(process, work, show)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        printed = log.read().decode("utf-8", "replace")
    if process.returncode:
        if "no space left" in printed.lower() or "ENOSPC" in printed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise Failed(reason(printed) or f"exit code {process.returncode}")


def watch(process: subprocess.Popen, work: Path, show: Callable[[int], None]) -> None:
    """Wait for the process, moving the progress line; kill it (by returning early) when it stalls."""
    seen, since = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            size = folder_size(work)
        show(size)
        if size != seen:
            seen, since = size, time.monotonic()
        if time.monotonic() - since > STALLED:
            raise Failed(f"no progress for {STALLED} s")


def need_space(target: Path, total: int) -> None:
    """OSError before the first byte of what cannot fit; what is there already counts as done. total: bytes."""
    if shutil.disk_usage(target).free < total - folder_size(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count as 0."""
    size = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # the client removed it meanwhile
    return size


def reason(printed: str) -> str:
    """The line of a client's output that says why it failed."""
    network = NETWORK.search(printed)
    if network:
        return f"no network, or its registry cannot be reached ({network[0]})"
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|\bERR!|^E:", line, re.IGNORECASE)]
    plain = [
        line
        for line in errors
        if not re.search(r"complete log|error (code|errno|syscall|path|dest)\b", line, re.IGNORECASE)
    ]
    return shortened((plain or errors or lines or [""])[0])


def shortened(line: str, width: int = 160) -> str:
    """A line of at most `width` characters, cut with three dots."""
    return line if len(line) <= width else line[: width - 3] + "..."


def collect(work: Path, into: Path, pattern: str, name: str) -> list[str]:
    """Move the one file the client left in `work` into the raw folder under the name the source states."""
    left = sorted(path for path in work.glob(pattern) if path.is_file())
    if len(left) != 1:
        raise Failed(f"expected one {pattern} file from it, found {len(left)}")
    os.replace(left[0], into / name)
    return [name]
