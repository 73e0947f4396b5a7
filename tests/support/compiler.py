"""With the C kernel and without: tests that need it are left out without a C compiler, and fail where one builds nothing."""

import pytest

from lowmem.optim.core import cpu_kernel, kernel_build

needs_compiler = pytest.mark.skipif(kernel_build.compiler() is None, reason="no C compiler here, or LOWMEM_KERNEL=0")
both_ways = pytest.mark.parametrize("way", [pytest.param("C", marks=needs_compiler), "stages"])


def without_kernel(monkeypatch) -> None:
    """As where there is no compiler."""
    monkeypatch.setattr(cpu_kernel, "library", lambda: None)
