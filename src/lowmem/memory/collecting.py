"""Python's search for cycles, put off; without PyTorch."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, cycles are not looked for: when that happens depends on what ran before, and it takes a tenth of the time of a
    trace and a sixth of that of importing PyTorch and transformers, which make a million objects that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
