"""What measured steps say of predicted ones: the factors between them, from the half of the cells that may set constants.

Each is (low, middle, high); low and high are the ends of an 80 % interval by rank (split conformal: of n sorted factors the
k-th with k = 0.1 (n + 1) rounded down, and its mirror image). A test sets them anew; the report says how many of the
held-out cells lie inside (extra_planner_cells).
"""

from __future__ import annotations

import math
import statistics

SHARE = 0.8
ERRORS = (1.8, 8.9)  # median and worst error of peaks on the cells held out, in per cent
SPEED = (0.727, 0.896, 1.001)  # measured tokens per second over predicted, models without experts
CARD = (1.069, 1.238, 1.804)  # memory in use on the card, or reserved by the allocator, over the predicted peak


def interval(factors: list[float]) -> tuple[float, float, float]:
    """(low, median, high) of measured over predicted."""
    ordered = sorted(factors)
    rank = math.floor((1 - SHARE) / 2 * (len(ordered) + 1))
    if rank < 1:
        raise ValueError(f"{len(ordered)} factors are too few for an interval of {SHARE:.0%}")
    return ordered[rank - 1], statistics.median(ordered), ordered[-rank]
