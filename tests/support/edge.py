"""The command line as a user meets it, in a process of its own: how it ended, within what time and memory, what it touched.

A process is forked from this one, which has imported PyTorch, so that thousands of cases take minutes.
"""

import contextlib
import hashlib
import importlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from checkout import ROOT

from lowmem import cli
from lowmem.data import fetch, prepare
from lowmem.errors import Failed, Misuse

LIMIT, ASLEEP = 20, 300  # seconds of work, and in all, before a case counts as hanging
MEMORY = 3 << 20  # kB that a case may take beyond this process
UNFORESEEN = re.compile(
    r"Traceback \(most recent|unexpected \w+|\b[A-Z]\w+(Error|Exception|Warning): .*; see train\.log"
)


@dataclass
class Ending:
    """finding: what must not be (a traceback, a signal, a hang, too much memory, several lines), or None."""

    code: int
    said: str
    finding: str | None

    @property
    def line(self) -> str:
        """The last line that it printed."""
        return self.said.strip().rpartition("\n")[2]


def warm(*modules: str) -> None:
    """Import here, once, what every child would import, and hash the code that all prepared data depends on."""
    for name in ("jsonschema", "lowmem.pipeline.planning", *modules):
        importlib.import_module(name)
    fetch.listed(ROOT)
    prepare.code_hash(ROOT / "data/imagenet/prepare.py")


def call(root: Path, *arguments: str) -> Ending:
    """Run `lowmem ARGUMENTS` in the checkout `root`."""
    return run(root, lambda: cli.main(list(arguments)))


def run(root: Path, work: Callable[[], object]) -> Ending:
    """Run a function there as the command line runs its commands: Misuse and Failed are one line and an exit code."""
    with tempfile.TemporaryFile() as printed:
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        child = os.fork()
        if child == 0:
            in_child(root, work, printed.fileno())
        ended = waited(child)
        seconds = time.monotonic() - began
        printed.seek(0)
        said = printed.read().decode("utf-8", "replace")
    if ended is None:
        return Ending(-1, said, f"no end after {seconds:.0f} s")
    status, used = ended
    code = os.waitstatus_to_exitcode(status)
    return Ending(code, said, finding(code, said, used.ru_maxrss - before))


def in_child(root: Path, work: Callable[[], object], printed: int) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = (os.fdopen(handle, "w", buffering=1, closefd=False) for handle in (1, 2))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["LOWMEM_ROOT"] = str(root)
        os.chdir(root)
        made = work()
        code = made if isinstance(made, int) else 0
    except (Misuse, Failed) as error:
        code = cli.report_error(error, 2 if isinstance(error, Misuse) else 1)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def waited(child: int):
    """(status, use of the machine) of a process, or None where it had to be killed."""
    until, process = time.monotonic() + ASLEEP, psutil.Process(child)
    while time.monotonic() < until:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            return status, used
        with contextlib.suppress(psutil.Error):
            if sum(process.cpu_times()[:2]) > LIMIT:
                break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.wait4(child, 0)
    return None


def finding(code: int, said: str, memory: int) -> str | None:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if found := UNFORESEEN.search(said):
        return f"traceback: {found[0]}"
    if memory > MEMORY:
        return f"{memory >> 10} MB of memory"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    lines = [line for line in said.splitlines() if line.startswith("lowmem: ")]
    if code and (not said.strip() or len(said.strip().rpartition("\n")[2]) > cli.LONGEST + 20):
        return "no line, or one without end"
    return "several lines" if code == 2 and len(lines) > 3 else None


def content(place: Path, but: Path) -> dict[str, str]:
    """What every file, link and folder of a place holds, but one folder's: equal before and after where nothing was touched."""
    found = {}
    for path in sorted(path for path in place.rglob("*") if not path.is_relative_to(but)):
        kind = os.readlink(path) if path.is_symlink() else None if path.is_file() else "no file"
        found[str(path)] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
    return found
