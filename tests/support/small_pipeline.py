"""A whole pipeline of a few exhibits that takes seconds: from a package client to the report, on text of its own."""

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import checkout
import yaml

EXHIBITS = ("adam_mini_fig10", "lomo_fig1")
RAW, PREPARED = "data/raw/toytext/fetched.json", "data/prepared/toytext-byte/meta.json"
NPM = """#!/bin/sh
while [ "$1" != --pack-destination ]; do shift; done
dd if="$PACKAGE" of="$2/half.tgz" bs=1000 count=20 2>/dev/null; sleep 0.7; cp "$PACKAGE" "$2/toytext-1.0.tgz"; rm "$2/half.tgz"
"""
PREPARE = '''"""One file; the last tenth is held out."""

import time

from lowmem.data import archives


def documents(raw):
    with archives.opened(raw, "*/text.txt") as stream:
        text = stream.read().decode()
    yield "train", text[: len(text) * 9 // 10]
    time.sleep(0.7)  # long enough to be killed in
    yield "val", text[len(text) * 9 // 10 :]
'''


def make(place: Path, steps: int = 60) -> Path:
    """A project whose smoke tier draws EXHIBITS, trained on a text that a client of its own delivers."""
    project = checkout.copy(place)
    for path in (project / "src/lowmem/exhibits").glob("[a-z]*.py"):
        if path.stem not in EXHIBITS:
            path.unlink()
    for path in (project / "workflow/config/claims").glob("*.yaml"):
        claims = yaml.safe_load(path.read_text())["claims"]
        path.write_text(yaml.safe_dump({"claims": [claim for claim in claims if claim["exhibit"] in EXHIBITS]}))
    smoke = project / "workflow/config/tiers/smoke.yaml"
    text = re.sub(
        r"openwebtext: \{[^}]*\}",
        "openwebtext: {dataset: toytext, source: package, tokenizer: byte}",
        smoke.read_text(),
    )
    smoke.write_text(text)
    train = f"train: {{steps: {steps}, eval_every: 10, eval_batches: 2, checkpoint_every: 10}}"
    checkout.edit(project / "workflow/config/experiments/gpt2_sizes.yaml", checkout.SMOKE_TRAIN, train)
    (project / "data/toytext").mkdir()
    (project / "data/toytext/prepare.py").write_text(PREPARE)
    words = "".join(f"{i} times {i % 17} is {i * (i % 17)}.\n" for i in range(9000)).encode()
    with tarfile.open(project / "package.tgz", "w:gz") as packed:
        member = tarfile.TarInfo("package/text.txt")
        member.size = len(words)
        packed.addfile(member, io.BytesIO(words))
    data = (project / "package.tgz").read_bytes()
    pin = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    entry = {"about": "toy", "licence": "none", "sources": [{"npm": "toytext@1.0", "file": "toytext-1.0.tgz", **pin}]}
    sources = project / "data/sources.yaml"
    sources.write_text(sources.read_text() + "\n" + yaml.safe_dump({"toytext": entry}))
    (project / "bin").mkdir()
    (project / "bin/npm").write_text(NPM)
    (project / "bin/npm").chmod(0o755)
    return project


def environment(project: Path) -> dict[str, str]:
    path = f"{project / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "LOWMEM_ROOT"}
    return {**kept, "PYTHONPATH": "src", "PATH": path, "PACKAGE": str(project / "package.tgz"), "OMP_NUM_THREADS": "1"}


def start(project: Path, *targets: str) -> subprocess.Popen:
    """The pipeline in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *targets, "--config", "tier=smoke"]
    with open(project / "pipeline.log", "a") as log:
        return subprocess.Popen(
            command, cwd=project, env=environment(project), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(process: subprocess.Popen, seconds: float = 200) -> int:
    """Exit code of the pipeline; TimeoutError, with everything killed, when it hangs."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        raise TimeoutError(f"the pipeline did not end within {seconds:g} s") from None


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to every process of the pipeline at once, as when the power fails."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stage(project: Path) -> str:
    """How far the pipeline is: the step that writes the first file that is still missing."""
    if not (project / RAW).is_file():
        return "fetch"
    if not (project / PREPARED).is_file():
        return "prepare"
    if len(list((project / "results/smoke").glob("*/done.json"))) < 2:
        return "train"
    if len(list((project / "reports/smoke").glob("*/*.json"))) < len(EXHIBITS):
        return "exhibit"
    return "report" if not (project / "reports/smoke/index.html").is_file() else "done"


def forget(project: Path, *names: str) -> None:
    """Remove files or folders of the project, if they are there."""
    for path in (project / name for name in names):
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def wipe(project: Path) -> None:
    """Back to a fresh clone: no data, results, reports, or notes of Snakemake."""
    forget(project, "data/raw", "data/prepared", "results", "reports", "logs", ".snakemake")


def wait_until(process: subprocess.Popen, condition, seconds: float = 120) -> bool:
    """Whether the condition came to hold before the process ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.005)
    return False
