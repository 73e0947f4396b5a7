"""Shared by the exhibits of memory and speed: runs of the experiment `simulated` as numbers and words."""

from lowmem.exhibit import Run, Shown

GIB = 2**30
SIMULATED = (
    "Simulated: peak memory by tracing the real training step on fake tensors, speed by a roofline model; no GPU was "
    "used. What is assumed stands in workflow/config/experiments/simulated.yaml."
)


def gib(run: Run, key: str = "peak_bytes") -> float | None:
    """A byte count of a finished run in GiB."""
    value = run.final(key)
    return None if value is None else value / GIB


def shown(value: float | None, digits: int = 2, otherwise: str = "") -> str:
    """A number with fixed digits, or what stands in its place."""
    return otherwise if value is None else f"{value:,.{digits}f}"


def missing(run: Run) -> dict:
    """A value for the claims that could not be had."""
    return {"value": None, "reason": run.reason}


def use(shown_: Shown, *runs: Run) -> None:
    """Note which finished runs the exhibit shows."""
    for run in runs:
        if run.status == "done" and run.id not in shown_.runs_used:
            shown_.runs_used.append(run.id)


def part(run: Run, *names: str) -> float | None:
    """GiB of components at the peak, added up."""
    if run.status != "done":
        return None
    return sum(run.record["memory"][name] for name in names) / GIB
