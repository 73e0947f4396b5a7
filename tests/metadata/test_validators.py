"""The official validators of what archives read; in an environment of its own, sh examples/environment.sh metadata."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str, at: Path = ROOT) -> subprocess.CompletedProcess:
    """One of this environment's programs."""
    program = Path(sys.executable).parent / name
    return subprocess.run([program, *arguments], cwd=at, capture_output=True, text=True)


def test_the_citation_file_is_valid_and_a_spoilt_one_is_not(tmp_path):
    done = run("cffconvert", "--validate")
    assert done.returncode == 0, done.stdout + done.stderr
    spoilt = (ROOT / "CITATION.cff").read_text().replace("type: software", "type: programme")
    (tmp_path / "CITATION.cff").write_text(spoilt)
    assert run("cffconvert", "--validate", at=tmp_path).returncode != 0


def test_every_file_has_a_licence_and_one_without_is_found(tmp_path):
    done = run("reuse", "lint")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(ROOT / "LICENSES", tmp_path / "LICENSES")
    (tmp_path / "code.py").write_text("x = 1\n")
    assert run("reuse", "lint", at=tmp_path).returncode != 0
