"""Checks of the settings that several rules share; every message names the setting and what it may be."""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import TypedDict

import torch
from torch import nn

from lowmem.errors import nearest

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NUMBERS = {
    "lr", "betas", "eps", "weight_decay", "momentum", "beta", "beta1", "dampening", "decay_rate", "clip_threshold",
}  # fmt: skip

ALONE = "the fastest way for the device is found by itself; leave it out"
UNCAPTURED = (
    "learning rate and bias corrections are computed on the host, so a CUDA graph cannot hold a step; leave it out, capture "
    "forward and backward only, and call step() outside"
)
TORCHS = {  # what scripts pass to torch's optimizers
    **dict.fromkeys(("fused", "foreach"), ALONE),
    "capturable": UNCAPTURED,
    "differentiable": "steps are not differentiated; leave it out",
    "amsgrad": "these methods have no such setting; leave it out",
    "maximize": "call (-loss).backward()",
}
NOT_SETTINGS = {"self", "defaults", "partition_settings", "inner", "params"}


class Common(TypedDict, total=False):
    """Keywords that every optimizer takes; RuleOptimizer documents them."""

    model: nn.Module | None
    no_decay: str | Iterable[str] | Callable[[str | None, torch.Tensor], bool] | None
    rounding: str
    state_dtype: torch.dtype | str | None
    nonfinite: str
    compile: bool
    offload: bool


COMMON = Common.__annotations__.keys()


def spelled_out(function: Callable, kinds: Iterable[type]) -> inspect.Signature:
    """The signature of a constructor with the common keywords by name in place of **common, for editors and tools.

    kinds: classes, of which the first whose constructor names all common keywords (RuleOptimizer) says their defaults.
    """
    own = inspect.signature(function)
    constructors = (inspect.signature(kind.__init__).parameters for kind in kinds)
    every = next(parameters for parameters in constructors if parameters.keys() >= COMMON)
    kept = [p for p in own.parameters.values() if p.name != "common"]
    return own.replace(parameters=[*kept, *(every[name] for name in COMMON if name not in own.parameters)])


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
    known = {p.name for level in levels for p in level if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} | COMMON
    name = next(iter(unknown))
    if name in TORCHS:
        raise TypeError(f"{kind.__name__} has no setting {name!r}: {TORCHS[name]}")
    raise TypeError(f"{kind.__name__} has no setting {name!r}{nearest(name, known - NOT_SETTINGS)}")


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

    if group.get("capturable"):
        raise ValueError(f"capturable={group['capturable']!r}: {UNCAPTURED}")

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
        fits = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype == torch.int8)
        check("state_dtype", fits, "a floating-point torch.dtype, or int8")


def as_dtype(value):
    """A dtype by its name in torch, "int8" or "bfloat16"; anything else as it is."""
    found = getattr(torch, value, None) if isinstance(value, str) else None
    return found if isinstance(found, torch.dtype) else value


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers (torch.compile, DistributedDataParallel, checkpoints) put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix("module.")
