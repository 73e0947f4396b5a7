"""Tests run side by side (pytest-xdist), so each keeps to one thread; set before torch is imported.

Some folders need what this environment may not have; .ci/run runs them where it is there.
"""

import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

collect_ignore = [] if torch.cuda.is_available() else ["gpu"]
for folder, package in (("frameworks", "deepspeed"), ("titan", "torchtitan")):  # examples/environment.sh
    if importlib.util.find_spec(package) is None:
        collect_ignore.append(folder)
if "LOWMEM_EXTRA_DATA" not in os.environ:  # a folder with original files of public data sets
    collect_ignore.append("extra")
if "LOWMEM_SLURM" not in os.environ:  # starts a SLURM on this machine
    collect_ignore.append("cluster")


@pytest.fixture(scope="session")
def everything():
    """(root, {id: what is shown}) of the laptop tier drawn whole from synthetic records; to be read only."""
    import synthetic

    return synthetic.drawn()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """One worker runs all tests that read `everything`, so that it is drawn once."""
    for item in items:
        if "everything" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("everything"))
