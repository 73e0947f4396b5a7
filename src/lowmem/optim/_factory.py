"""Optimizers by the name of their file, as experiment files choose them.

Classes are imported by name on demand, so that a run depends only on the rule that it uses (provenance.entries records
the same dependency).
"""

import importlib
import inspect
from fnmatch import fnmatchcase

from lowmem.errors import Misuse, nearest
from lowmem.optim import names

COMMON = ("model", "no_decay", "rounding", "state_dtype", "nonfinite")  # keywords of every rule


def find(name: str) -> type:
    """The optimizer class of a file: the last torch optimizer that the file itself defines."""
    from torch.optim import Optimizer

    if name not in names():
        raise Misuse(f"unknown optimizer {name!r}{nearest(name, names())}")
    module = importlib.import_module(f"lowmem.optim.{name}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return [c for c in own if issubclass(c, Optimizer)][-1]


def make(
    model,
    name: str,
    backward: dict | None = None,
    groups: dict | None = None,
    beside: dict | None = None,
    only: list | None = None,
    **settings,
):
    """Build an optimizer by the name of its file, as experiment files do.

    settings: the class's keywords. backward: run it inside backward with these FusedBackward keywords ({} for none).
    groups: {parameter name or pattern: settings of a group of its own}, for parameters with another rate.
    beside: {parameters: pattern, name, settings..., max_grad_norm?}: another optimizer for these parameters, after backward.
    only: [(name, parameter)] to optimize, if not all.
    Raises Misuse with one line for an unknown name, keyword or value.
    """
    if beside is not None:
        return make_beside(model, {"name": name, "backward": backward, **settings}, dict(beside))

    optimizer = find(name)
    try:
        chosen = split(model, groups) if groups else [{"params": only}] if only else None
        built = optimizer(chosen, model=model, **settings) if chosen else optimizer(model, **settings)
        if backward is not None:
            built = importlib.import_module("lowmem.optim.core.fused_backward").FusedBackward(built, **backward)
    except TypeError as error:
        known = {*inspect.signature(optimizer).parameters, *COMMON}
        wrong = sorted(set(settings) - known)
        message = f"unknown setting {wrong[0]!r}{nearest(wrong[0], known)}" if wrong else str(error)
        raise Misuse(f"optimizer {name}: {message}") from error
    except ValueError as error:
        raise Misuse(f"optimizer {name}: {error}") from error
    return built


def make_beside(model, first: dict, second: dict):
    """Two optimizers that share a model's parameters (combined.py)."""
    pattern, limit = second.pop("parameters", None), second.pop("max_grad_norm", None)
    if not pattern:
        raise Misuse("optimizer beside: name the parameters it updates, as in parameters: '*lora_*'")
    own, *rest = split(model, {pattern: {}})
    if not rest:
        raise Misuse(f"optimizer beside: {pattern!r} takes every parameter; nothing is left for {first['name']}")
    built = []
    for group, settings in ((rest[0], first), (own, second)):
        trained = [(name, p) for name, p in group["params"] if p.requires_grad]
        built.append(make(model, **settings, only=trained))
    try:
        return importlib.import_module("lowmem.optim.core.combined").CombinedOptimizer(*built, limit)
    except TypeError as error:
        raise Misuse(f"optimizer beside: {error}") from error


def split(model, groups: dict) -> list[dict]:
    """Parameter groups of a model: one for each pattern, in order, and a last one for what no pattern names."""
    left, made = dict(model.named_parameters()), []
    for pattern, settings in groups.items():
        named = [(name, left.pop(name)) for name in list(left) if fnmatchcase(name, pattern)]
        if not named:
            raise Misuse(
                f"optimizer groups: {pattern!r} matches no parameter; names look like {next(iter(left), '')!r}"
            )
        made.append({"params": named, **settings})
    return [*made, {"params": list(left.items())}] if left else made
