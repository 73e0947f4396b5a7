"""Which parameters are not decayed: name patterns, checked against the names there are, or a predicate."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import torch

from lowmem.optim.core.hyperparameters import plain_name


def is_picked(by: Callable | list[str], name: str | None, p: torch.Tensor) -> bool:
    """Whether name patterns, or a predicate(name, parameter), pick a parameter. ValueError where patterns lack a name."""
    if callable(by):
        return bool(by(name, p))
    if name is None:
        raise ValueError("no_decay by name needs names: pass the model, or (name, parameter) pairs")
    return any(_matches(pattern, name) for pattern in by)


def as_patterns(no_decay):
    """no_decay as a list of patterns or a predicate; one string is one pattern."""
    if no_decay is None or callable(no_decay):
        return no_decay
    patterns = [no_decay] if isinstance(no_decay, str) else list(no_decay)
    wrong = next((pattern for pattern in patterns if not isinstance(pattern, str)), None)
    if wrong is not None:
        raise ValueError(f"no_decay={no_decay!r}: name patterns, or a function of (name, parameter)")
    return patterns


def check_patterns(no_decay, names: list[str]) -> None:
    """ValueError for a pattern of no_decay that picks none of the parameters, and for patterns that pick all of several."""
    if no_decay is None or callable(no_decay) or not names:
        return
    example = max(map(plain_name, names), key=lambda name: name.count("."))
    for pattern in no_decay:
        found = sum(_matches(pattern, name) for name in names)
        if not found:
            parts = [name for name in names if pattern.strip("*") and pattern.strip("*") in name]
            hint = (
                f"patterns match whole names: write '*{pattern.strip('*')}*'"
                if parts
                else f"names look like {example!r}"
            )
            raise ValueError(f"no_decay: {pattern!r} matches no parameter; {hint}")
        if found == len(names) > 1:
            raise ValueError(f"no_decay: {pattern!r} matches every parameter; set weight_decay=0 to disable decay")
    if len(names) > 1 and all(any(_matches(pattern, name) for pattern in no_decay) for name in names):
        together = ", ".join(map(repr, no_decay))
        raise ValueError(f"no_decay: {together} together match every parameter; set weight_decay=0 to disable decay")


def _matches(pattern: str, name: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(plain_name(name), pattern)
