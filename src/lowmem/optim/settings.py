"""Checks of the settings that several rules share; every message names the setting and what it may be."""

import fnmatch
import inspect
import math
import numbers
from collections.abc import Callable

import torch

from lowmem.errors import nearest

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NUMBERS = {
    "lr", "betas", "eps", "weight_decay", "momentum", "beta", "beta1", "dampening", "decay_rate", "clip_threshold",
}  # fmt: skip


def one_of(key: str, value, allowed: tuple) -> None:
    """ValueError unless value is allowed."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: choose from {', '.join(map(repr, allowed))}")


def refuse_unknown(kind: type, unknown: dict) -> None:
    """TypeError for keywords that no constructor of this optimizer takes, with the nearest one that it does."""
    if not unknown:
        return
    levels = [
        inspect.signature(level.__init__).parameters.values() for level in kind.__mro__ if "__init__" in vars(level)
    ]
    known = {p.name for level in levels for p in level if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    name = next(iter(unknown))
    raise TypeError(
        f"{kind.__name__} has no setting {name!r}{nearest(name, known - {'self', 'defaults', 'partition_settings'})}"
    )


def is_number(value) -> bool:
    """Whether value is a real number, or a tensor that holds one."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_settings(group: dict, beta_count: int, eps_count: int) -> None:
    """ValueError for a learning rate, beta, eps, momentum, decay or dtype that no rule can work with."""

    def check(key: str, fits: bool, want: str) -> None:
        if not fits:
            raise ValueError(f"{key}={group[key]!r}: {want}")

    def values(key: str) -> tuple:
        return tuple(group[key]) if isinstance(group[key], (tuple, list)) else (group[key],)

    unused = {"beta1"} | ({"lr"} if group.get("relative_step") is True else set())  # None means: without it
    given = {key for key in NUMBERS & group.keys() if not (group[key] is None and key in unused)}
    for key in given:
        hint = " (YAML reads 1e-3 as text, 1.0e-3 as a number)" if any(isinstance(v, str) for v in values(key)) else ""
        count = {"betas": beta_count, "eps": eps_count}.get(key, 1)
        several = isinstance(group[key], (tuple, list))
        fits = several and len(group[key]) == count if count > 1 else not several
        check(key, fits, f"must be {count} numbers" if count > 1 else "must be one number")
        check(key, all(map(is_number, values(key))), "must be a number" + hint)
    if "lr" in given:
        check("lr", 0 <= float(group["lr"]) < math.inf, "a learning rate is 0 or more, and finite")
    if "betas" in given:
        check("betas", all(0 <= beta < 1 for beta in group["betas"]), "each beta lies in [0, 1)")
    for key in given & {"momentum", "beta", "beta1"}:
        check(key, 0 <= group[key] < 1, "lies in [0, 1)")
    for key in given & {"eps", "weight_decay"}:
        check(key, all(0 <= value < math.inf for value in values(key)), "0 or more, and finite")
    if "dampening" in given:
        check("dampening", math.isfinite(group["dampening"]), "a finite number")
    if "decay_rate" in given:
        check("decay_rate", -math.inf < group["decay_rate"] <= 0, "0 or less: beta2 is 1 - step ** decay_rate")
    if "clip_threshold" in given:
        check("clip_threshold", group["clip_threshold"] > 0, "more than 0")
    dtype = group.get("state_dtype")
    if dtype is not None:
        check("state_dtype", isinstance(dtype, torch.dtype) and dtype.is_floating_point, "a floating-point torch.dtype")


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers (torch.compile, DistributedDataParallel, checkpoints) put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix("module.")


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
    """ValueError for a pattern of no_decay that picks none of the parameters, or all of several."""
    if no_decay is None or callable(no_decay) or not names:
        return
    example = plain_name(names[0])
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
            raise ValueError(
                f"no_decay: {pattern!r} matches every parameter; set weight_decay=0 if nothing shall decay"
            )


def _matches(pattern: str, name: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(plain_name(name), pattern)


def as_numbers(group: dict) -> dict:
    """The settings of a group, tensor-valued ones (lr) as numbers; the group as it is while torch.compile traces."""
    if torch.compiler.is_compiling():
        return group
    scalar = {k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor) and v.numel() == 1}
    return {k: scalar.get(k, v) for k, v in group.items() if k != "params"}
