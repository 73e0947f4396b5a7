"""A number that an exhibit shows and claims read: the number with its interval, or why there is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:  # claims and tables read entries without NumPy
    from lowmem.analysis.stats import Estimate

SIDES = ("subject", "baseline")


class Value(TypedDict, total=False):
    """One entry of ExhibitResult.values, as <id>.json holds it. Without n and interval a number is exact."""

    value: float | None  # None: there is no number, and `reason` says why
    reason: str
    failed: str  # of SIDES, the one whose run diverged or ran out of memory, where it was one alone
    low: float | None  # the ends of the interval; None where one run has none
    high: float | None
    n: int
    unit: str | None
    method: str  # of the interval, see analysis/stats.py
    range: str  # what low and high are, where it is no 95 % interval
    by_seed: dict[str, float]  # the numbers of which it is the mean
    settings: int  # of how many values it is the worst or least
    parts: list[dict]  # the values of which it is the worst or least, for Holm's correction
    pooled: dict  # the mean of these parts, the headline of a claim about all of them
    busy: str  # of a time: what competed for the cores while it was taken, so that it decides nothing
    step: int  # where in training it was seen
    adamw: float  # AdamW's own number there


def exact(value: float, unit: str | None = None) -> Value:
    """A number without an interval."""
    return {"value": value} if unit is None else {"value": value, "unit": unit}


def estimated(e: Estimate, unit: str | None = "nat", by_seed: dict[int, float] | None = None) -> Value:
    """An estimate. by_seed: the numbers it is the mean of."""
    found = {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "unit": unit, "method": e.method}
    return found if by_seed is None else {**found, "by_seed": {str(seed): one for seed, one in by_seed.items()}}


def missing(reason: str, failed: str | None = None) -> Value:
    """No number. failed: "subject" or "baseline", when a run of that side alone diverged."""
    return {"value": None, "reason": reason, **({"failed": failed} if failed else {})}


def is_result(reason: str) -> bool:
    """Whether a reason for no number is a result itself: diverged, out of memory. These words open it, perhaps after a name;
    in the message of a failed run, "not run: failed (...)", they mean nothing."""
    return re.match("(?!not run)([^:()]*: )?(every rate )?(diverged|out of memory)", reason) is not None


def value_or_reason(value: float | None, unit: str, reason: str | None) -> Value:
    """A number, unless there is a reason why there is none."""
    return missing(reason) if reason else exact(value, unit)


def text(found: Value, signed: bool = False, digits: int | None = None, style: str | None = None) -> str:
    """A value as a cell: its number with the interval, or the reason for none. style: of the numbers, in place of digits."""
    if found["value"] is None:
        return found["reason"]
    digits = (4 if signed else 3) if digits is None else digits
    style = style or f"{'+' if signed else ''}.{digits}f"
    if found.get("low") is None:
        return f"{found['value']:{style}}"
    return f"{found['value']:{style}} [{found['low']:{style}}, {found['high']:{style}}]"


def as_estimate(found: Value) -> Estimate:
    """The estimate that an entry was made of."""
    from lowmem.analysis.stats import Estimate

    return Estimate(found["value"], found["low"], found["high"], found["n"], found["method"])


def check(name: str, found: Value) -> None:
    """ValueError where an exhibit wrote an entry that no claim could read: a misspelled key would be a wrong verdict."""
    unknown = sorted(found.keys() - Value.__annotations__.keys())
    if unknown:
        raise ValueError(f"value {name}: unknown key {unknown[0]!r}; the keys stand in reporting/values.py")
    if "value" not in found or (found["value"] is None and not found.get("reason")):
        raise ValueError(f"value {name}: neither a number nor a reason why there is none")
    if found["value"] is not None and {"reason", "failed"} & found.keys():
        raise ValueError(f"value {name}: a number and a reason why there is none")
    if found.get("failed", SIDES[0]) not in SIDES:
        raise ValueError(f"value {name}: failed is {found['failed']!r}, not one of {', '.join(SIDES)}")
    if (found.get("low") is None) != (found.get("high") is None):
        raise ValueError(f"value {name}: an interval with one end")
    for part in [*found.get("parts", []), *filter(None, [found.get("pooled")])]:
        check(f"{name} (a part)", part)
