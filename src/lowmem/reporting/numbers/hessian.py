"""The numbers of tasks/hessian.py over the runs of an exhibit, as intervals over seeds."""

from lowmem.analysis.stats import Estimate, estimate
from lowmem.reporting.numbers import losses
from lowmem.reporting.runs import Run
from lowmem.reporting.values import Value, estimated, missing

MODULES = ("query", "key", "value", "attn.proj", "mlp.fc", "mlp.proj", "embedding", "output")  # of Figure 7, a to h


def numbers(runs: list[Run], stage: str, module: str, *keys: str) -> list[tuple]:
    """[(value of each key)] over the finished runs; a key "clusters.agreement" looks one level down."""
    found = []
    for run in runs:
        entry = ((run.final("stages") or {}).get(stage) or {"modules": {}})["modules"].get(module)
        if entry is not None:
            found.append(tuple(dig(entry, key) for key in keys))
    return found


def inside(share: float, low: float, high: float) -> str:
    """The caption under an image: the share of |H| inside the blocks, and the interval of random partitions."""
    return f"inside {100 * share:.0f} %\nrandom {100 * low:.1f} to {100 * high:.1f} %"


def dig(entry: dict, key: str):
    """The entry at a path like "a.b.c" of dictionaries in each other; None where it ends before."""
    for part in key.split("."):
        entry = entry.get(part) if isinstance(entry, dict) else None
    return entry


def stages(runs: list[Run]) -> list[str]:
    """Stages of these runs as their records name them, early ones first."""
    names = {f"{stage:g}" for run in runs for stage in run.config["measure"].get("stages", [1.0])}
    return sorted(names, key=float)


def over_seeds(values: list[float | None]) -> Estimate | None:
    """Mean and interval; None without values."""
    known = [value for value in values if value is not None]
    return estimate(known) if known else None


def value(e: Estimate | None, reason: str | None, unit: str | None = None) -> Value:
    """An entry of ExhibitResult.values: the estimate, or why there is none."""
    if e is None or reason:
        return missing(reason or "not run: no number in the records")
    return estimated(e, unit)


def smallest(estimates: list[Estimate | None], reason: str | None, unit: str | None = None) -> Value:
    """The least of several estimates, with its parts, as an entry."""
    return gone(estimates, reason, unit) or losses.smallest(value(e, None, unit) for e in estimates)


def largest(estimates: list[Estimate | None], reason: str | None, unit: str | None = None) -> Value:
    """The worst of several estimates, with its parts, as an entry."""
    return gone(estimates, reason, unit) or losses.largest(value(e, None, unit) for e in estimates)


def gone(estimates: list[Estimate | None], reason: str | None, unit: str | None) -> dict | None:
    """Why there is no extreme of these; None where there is one."""
    return value(None, reason, unit) if reason or None in estimates else None


def percent(e: Estimate | None) -> str:
    """A share with its interval, '64.1 % [60.0, 68.2]'."""
    if e is None:
        return ""
    return f"{100 * e.value:.1f} %" + ("" if e.low is None else f" [{100 * e.low:.1f}, {100 * e.high:.1f}]")


def at(stage: str) -> str:
    """0.01 -> '1 % of training'."""
    return f"{100 * float(stage):g} % of training"


def plural(kind: str) -> str:
    """The plural of a kind of block."""
    return {"head": "heads", "token": "tokens", "neuron": "neurons"}.get(kind, kind)
