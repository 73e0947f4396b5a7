"""Intervals and paired differences. Every random draw comes from a generator seeded here: no global random state.

Which interval: from 31 values on, a seeded percentile bootstrap of the mean; from 2 to 30 the t-interval, because a
bootstrap of few values is too narrow (its 95 % interval covers the mean of normal values 76 times in 100 at n = 3, and
90.5 times at n = 10). One value has no interval.

What all seeds share is no part of their scatter: the windows or questions on which they are evaluated. `two_way` has the
error of both where every seed's loss on every window is known; `wider` adds a known sampling error to a seed interval.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # 97.5 % of the normal distribution
SMALLEST_BOOTSTRAP = 31
ONE_SIDED = 0.025  # the side of a 95 % interval that stands against a claim


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval: low and high are None where n < 2. method: "t", "two-way", "bootstrap" or "single"."""

    value: float
    low: float | None
    high: float | None
    n: int
    method: str


def estimate(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of independent values with the interval that suits their number (module docstring says which and why)."""
    values = np.asarray(values, dtype=np.float64)  # (n,)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"estimate needs a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("estimate needs finite numbers; a diverged run is a result of its own, not a value")
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1, "single")
    if n < SMALLEST_BOOTSTRAP:
        half = t_quantile(0.5 + level / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
        return Estimate(mean, mean - half, mean + half, n, "t")
    low, high = bootstrap(values, level=level, seed=seed)
    return Estimate(mean, low, high, n, "bootstrap")


def two_way(values, level: float = 0.95) -> Estimate:
    """Mean of values (seeds, items), every seed on the same items, with the error of both which seeds and which items.

    The scatter of the seeds' means and that of the items' means each give a t half-width; both are added in quadrature. The
    residual counts twice, and the larger quantile of few seeds is used whole, so that the interval errs to the wide side.
    n is the number of seeds. One seed or one item has no interval.
    """
    values = np.asarray(values, dtype=np.float64)  # (seeds, items)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(f"two_way needs finite numbers by seed and item, got shape {values.shape}")
    (seeds, items), mean = values.shape, float(values.mean())
    if min(seeds, items) == 1:
        return Estimate(mean, None, None, seeds, "single")
    ends = [
        t_quantile(0.5 + level / 2, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
        for means in (values.mean(axis=1), values.mean(axis=0))
    ]
    half = math.hypot(*ends)
    return Estimate(mean, mean - half, mean + half, seeds, "two-way")


def wider(e: Estimate, error: float) -> Estimate:
    """An interval over seeds with the standard error of the evaluation sample that they share, added in quadrature."""
    if e.low is None:
        return e
    low, high = (math.hypot(end - e.value, Z * error) for end in (e.low, e.high))
    return Estimate(e.value, e.value - low, e.value + high, e.n, e.method)


def chance(e: Estimate, bound: float) -> float:
    """One-sided p-value of "the quantity is not above the bound": small where the estimate is clearly above it.

    Read back from the interval: its lower half-width is one quantile of t over the seeds (of the normal, for a bootstrap).
    """
    if e.value <= bound or e.low is None:
        return 1.0
    if e.low == e.value:
        return 0.0
    t = (e.value - bound) / (e.value - e.low)
    if e.method in ("t", "two-way"):
        return 1 - t_distribution(t * t_quantile(0.975, e.n - 1), e.n - 1)
    return 0.5 * math.erfc(t * Z / math.sqrt(2))


def holm(chances: Sequence[float], level: float = ONE_SIDED) -> list[bool]:
    """Which of several p-values are significant together (Holm 1979): any false one at most `level` of the time."""
    order, found = sorted(range(len(chances)), key=chances.__getitem__), [False] * len(chances)
    for rank, at in enumerate(order):
        if chances[at] > level / (len(chances) - rank):
            break
        found[at] = True
    return found


def bootstrap(
    values: Sequence[float],
    statistic: Callable = np.mean,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Seeded percentile bootstrap interval of `statistic`, which must take `axis=1`."""
    values = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    resampled = statistic(values[chosen], axis=1)  # (draws,)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """{seed: ours - theirs} over the seeds that both have: same seed means same data order and same first weights."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def worst(estimates: Sequence[Estimate]) -> Estimate | None:
    """The largest of several estimates, end by end: its high is below a bound only if every one of them is.

    A claim "at every size" is confirmed this way without a correction for the number of sizes (intersection-union test);
    to refute it takes one, see `holm`.
    None where one of them is missing an interval would hide it, so the result then has no interval either.
    """
    if not estimates:
        return None
    value, n = max(e.value for e in estimates), min(e.n for e in estimates)
    if any(e.low is None for e in estimates):
        return Estimate(value, None, None, n, "single")
    return Estimate(value, max(e.low for e in estimates), max(e.high for e in estimates), n, estimates[0].method)


def least(estimates: Sequence[Estimate]) -> Estimate | None:
    """The smallest of several estimates, end by end: its low is above a bound only if every one of them is."""
    found = worst([turned(e) for e in estimates])
    return found and turned(found)


def turned(e: Estimate) -> Estimate:
    """The estimate of minus the quantity."""
    return Estimate(-e.value, None if e.high is None else -e.high, None if e.low is None else -e.low, e.n, e.method)


def share(part: float, count: int) -> tuple[float, float]:
    """95 % interval of a share in [0, 1] that was seen in `count` independent cases (Wilson 1927)."""
    middle, half = part + Z * Z / (2 * count), Z * math.sqrt(part * (1 - part) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z * Z / count
    return (middle - half) / scale, (middle + half) / scale


@functools.cache
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection of its closed-form distribution."""
    if not 0.5 <= p < 1:
        raise ValueError(f"p must lie in [0.5, 1), got {p}")
    low, high = 0.0, 1.0
    while t_distribution(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, df) < p else (low, middle)
    return (low + high) / 2


def t_distribution(t: float, df: int) -> float:
    """P(T <= t) for t >= 0 and whole df >= 1 (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    cos2, term, total = math.cos(angle) ** 2, 1.0, 0.0
    start = 1 if df % 2 == 0 else 2
    for k in range(start, df, 2):  # 1 + 1/2 cos2 + 1*3/(2*4) cos2^2 + ..., or with 2/3, 2*4/(3*5), ... for odd df
        total += term
        term *= k / (k + 1) * cos2
    if df % 2 == 0:
        return 0.5 + 0.5 * math.sin(angle) * total
    return 0.5 + (angle + math.sin(angle) * math.cos(angle) * total) / math.pi
