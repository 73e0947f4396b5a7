"""Range checks of the settings that several rules share; every message names the setting and its range."""

import math

import torch


def one_of(key: str, value, allowed: tuple) -> None:
    """ValueError unless value is allowed."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: choose from {', '.join(map(repr, allowed))}")


def check_settings(group: dict, beta_count: int = 2) -> None:
    """ValueError for a learning rate, beta, eps, momentum, decay or dtype that no rule can work with."""

    def check(key: str, fits: bool, want: str) -> None:
        if not fits:
            raise ValueError(f"{key}={group[key]!r}: {want}")

    if group.get("lr") is not None:
        check("lr", 0 <= float(group["lr"]) < math.inf, "a learning rate is 0 or more, and finite")
    if group.get("betas") is not None:
        check("betas", len(group["betas"]) == beta_count, f"{beta_count} numbers")
        check("betas", all(0 <= beta < 1 for beta in group["betas"]), "each beta lies in [0, 1)")
    for key in ("momentum", "beta", "beta1"):
        if group.get(key) is not None:
            check(key, 0 <= group[key] < 1, "lies in [0, 1)")
    if group.get("eps") is not None:
        values = group["eps"] if isinstance(group["eps"], (tuple, list)) else (group["eps"],)
        check("eps", all(0 <= value < math.inf for value in values), "0 or more, and finite")
    if group.get("weight_decay") is not None:
        check("weight_decay", 0 <= group["weight_decay"] < math.inf, "0 or more, and finite")
    if group.get("dampening") is not None:
        check("dampening", math.isfinite(group["dampening"]), "a finite number")
    if group.get("decay_rate") is not None:
        check("decay_rate", -math.inf < group["decay_rate"] <= 0, "0 or less: beta2 is 1 - step ** decay_rate")
    if group.get("clip_threshold") is not None:
        check("clip_threshold", group["clip_threshold"] > 0, "more than 0")
    dtype = group.get("state_dtype")
    if dtype is not None:
        check("state_dtype", isinstance(dtype, torch.dtype) and dtype.is_floating_point, "a floating-point torch.dtype")
