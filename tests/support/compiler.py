"""Tests of the C kernel are left out where no C compiler works."""

import pytest

from lowmem.optim.core import cpu_kernel

needs_compiler = pytest.mark.skipif(cpu_kernel.library() is None, reason="no C compiler here")
