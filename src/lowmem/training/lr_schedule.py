"""Learning rate as a function of the update's number: constant, cosine or linear, after a linear warm-up."""

import math

NAMES = ("constant", "cosine", "linear")


def lr_at(step: int, peak: float, schedule: dict, train_steps: int) -> float:
    """Rate of update `step`, counted from 1.

    Update k of the warm-up has rate peak * k / warmup_steps; warmup_ratio gives these steps as a share of all. After it
    the rate falls to min_lr, reached at update `steps` (default train_steps) and kept from there on. No schedule:
    constant.
    """
    name = schedule.get("name", "constant")
    warmup = schedule.get("warmup_steps", int(schedule.get("warmup_ratio", 0) * train_steps))
    if step <= warmup:
        return peak * step / warmup
    if name == "constant":
        return peak
    last = schedule.get("steps", train_steps)
    done = min(1.0, (step - warmup) / max(1, last - warmup))
    remaining = (1 + math.cos(math.pi * done)) / 2 if name == "cosine" else 1 - done
    floor = schedule.get("min_lr", 0.0)
    return floor + (peak - floor) * remaining
