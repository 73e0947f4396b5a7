"""Triton's interpreter on a CPU: tiles are small, so that small tensors have many, and the C kernel stays out."""

import pytest

from lowmem.optim import SGD, AdamMini, AdamW
from lowmem.optim.core import gpu_tables


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    for rule in (AdamMini, AdamW, SGD):
        monkeypatch.setattr(rule, "ways_of_codes", ())
        monkeypatch.setattr(rule, "ways_on_cpu", rule.ways_elsewhere)
    for name, size in dict(TILE=32, LONGEST=64, DOWN=4, ACROSS=16, SETTLE=16).items():
        monkeypatch.setattr(gpu_tables, name, size)
