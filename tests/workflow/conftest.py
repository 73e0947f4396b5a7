"""Folders that the tests of the workflow start from."""

from pathlib import Path

import checkout
import pytest


@pytest.fixture
def root() -> Path:
    return checkout.ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return checkout.copy(tmp_path / "project")


@pytest.fixture
def toy(project: Path) -> Path:
    return checkout.with_toy_text(project)
