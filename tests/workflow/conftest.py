"""A copy of the checkout's code and configuration that a test may change, and a way to call Snakemake in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns("__pycache__", "raw", "prepared", "cache", "*.egg-info")


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Snakefile, workflow, profiles, src and data (no downloads) in an empty folder."""
    place = tmp_path / "project"
    for name in ("workflow", "profiles", "src", "data"):
        shutil.copytree(ROOT / name, place / name, ignore=IGNORED)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, place / name)
    return place


def command(place: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run `python -m ...` in a project with its own src first; its output is text."""
    environment = {**os.environ, "PYTHONPATH": "src", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("LOWMEM_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=280
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
