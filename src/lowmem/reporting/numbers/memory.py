"""Shared by the exhibits of memory and speed: runs of the experiment `simulated` as numbers and words."""

from lowmem.reporting.runs import Run

GIB = 2**30
SIMULATED = (
    "Simulated: peak memory by tracing the real training step on fake tensors, speed by a roofline model; no GPU was "
    "used. What is assumed stands in workflow/config/experiments/simulated.yaml."
)


def gib(run: Run, key: str = "peak_bytes") -> float | None:
    """A byte count of a finished run in GiB."""
    value = run.final(key)
    return None if value is None else value / GIB


def rate(run: Run) -> tuple[float | None, str | None]:
    """(simulated tokens/s over all GPUs, None), or (None, why not): no record, or one that needs more memory than there is.

    A record without a batch that fits holds the speed of one sequence all the same, which no GPU would reach.
    """
    if run.status != "done":
        return None, run.reason
    return (run.final("tokens_per_s"), None) if run.final("fits") else (None, "out of memory (simulated)")


def shown(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits; nothing where it is unknown."""
    return "" if value is None else f"{value:,.{digits}f}"


def part(run: Run, *names: str) -> float | None:
    """GiB of components at the peak, added up."""
    if run.status != "done":
        return None
    return sum(run.record["memory"][name] for name in names) / GIB
