"""Tests run side by side (pytest-xdist), so each keeps to one thread; set before torch is imported.

Some folders need what this environment may not have; .ci/run runs them where it is there.
"""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import checkout
import filelock
import pytest
import torch

collect_ignore = [] if torch.cuda.is_available() else ["gpu"]
for folder, package in (
    ("frameworks", "deepspeed"),
    ("titan", "torchtitan"),
    ("metadata", "cffconvert"),
):  # examples/environment.sh
    if importlib.util.find_spec(package) is None:
        collect_ignore.append(folder)
if "LOWMEM_EXTRA_DATA" not in os.environ:  # a folder with original files of public data sets
    collect_ignore.append("extra")
if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    collect_ignore.append("gpu_kernels")  # Triton without a GPU, in a process of its own
if "LOWMEM_SLURM" not in os.environ:  # starts a SLURM on this machine
    collect_ignore.append("cluster")


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """(root, {id: what is shown}) of the laptop tier drawn whole from synthetic records, once for all workers; read only."""
    import synthetic

    from lowmem.files import read_json
    from lowmem.reporting.exhibit import ExhibitResult

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which the workers share
    with filelock.FileLock(place / "everything.lock"):
        kept = place / "everything.json"
        if not kept.exists():
            synthetic.draw(place / "everything", kept)
        return place / "everything", {id: ExhibitResult(**row) for id, row in read_json(kept).items()}


@pytest.fixture
def root() -> Path:
    return checkout.ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return checkout.copy(tmp_path / "project")


@pytest.fixture
def toy(project: Path) -> Path:
    return checkout.with_toy_text(project)
