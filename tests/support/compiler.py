"""With the C kernel and without: tests that need it are left out where no C compiler works."""

import pytest

from lowmem.optim.core import cpu_kernel

needs_compiler = pytest.mark.skipif(cpu_kernel.library() is None, reason="no C compiler here")
both_ways = pytest.mark.parametrize("way", [pytest.param("C", marks=needs_compiler), "stages"])


def without_kernel(monkeypatch) -> None:
    """As where there is no compiler."""
    monkeypatch.setattr(cpu_kernel, "library", lambda: None)
