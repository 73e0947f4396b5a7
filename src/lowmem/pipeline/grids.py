"""The grid of an experiment: one point for each value of each axis, and for each learning rate of that point.

A point's name is its values joined by "-"; its coordinates are {axis: value}, by which exhibits choose runs. Where a value
of an axis stands for several things, its overlay says which (`at: {method: lora, rank: 2}`), and these are coordinates too.
Standard library only.
"""

import fnmatch
import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A point of a grid. axes: its coordinates; lr is a number. overlays: what it changes in the settings, in order."""

    variant: str
    axes: dict[str, str | float]
    overlays: tuple[dict, ...]


def points(axes: dict, rates: dict | None, excluded: list[str]) -> Iterator[Point]:
    """All points in the order of the axes, but those whose variant fits a pattern of `excluded`.

    axes: {axis: {value: overlay}}. rates: {pattern of a variant: learning rates}, a last axis; the first pattern that fits
    counts, and without one a point has no rate and is left out. None: no such axis.
    """
    for names in itertools.product(*axes.values()):
        found = [dict(axes[axis][name] or {}) for axis, name in zip(axes, names)]
        place: dict[str, str | float] = dict(zip(axes, names))
        for overlay in found:
            place |= overlay.pop("at", {})
        for lr in (None,) if rates is None else fitting(rates, "-".join(names)):
            variant = "-".join(names if lr is None else (*names, spelled(lr))) or "only"
            if not fits(variant, excluded):
                rate = () if lr is None else ({"optimizer": {"lr": lr}},)
                yield Point(variant, place if lr is None else {**place, "lr": lr}, (*found, *rate))


def fitting(rates: dict[str, list[float]], variant: str) -> list[float]:
    """The rates of the first pattern that fits; none without one."""
    return next((found for pattern, found in rates.items() if fnmatch.fnmatch(variant, pattern)), [])


def fits(name: str, patterns: list[str]) -> bool:
    """Whether a variant, or variant/seed<k>, is one of those that the patterns name."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def spelled(lr: float) -> str:
    """A rate as the last part of a variant: 0.003 is 3e.3, 1 is 1e0 ("-" joins axes)."""
    digits, power = f"{lr:e}".split("e")
    return f"{float(digits):g}e{'.' * (int(power) < 0)}{abs(int(power))}"
