"""Triton's interpreter on a CPU: tiles are small, so that small tensors have many, and the C kernel stays out."""

import pytest

from lowmem.optim import gpu_tables, kernel


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setattr(kernel, "library", lambda: None)
    for name, size in dict(TILE=32, LONGEST=64, DOWN=4, ACROSS=16, SETTLE=16).items():
        monkeypatch.setattr(gpu_tables, name, size)
