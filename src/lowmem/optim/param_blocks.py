"""From what a user hands over (a model, a partition, parameters, groups) to named parameters and their blocks.

Every parameter of a model is held, as torch.optim.AdamW(model.parameters()) holds it, so that what is frozen now trains
when it is thawed. Blocks are found when a parameter trains for the first time: a frozen one may be of a kind that no
rule places, or (lazy layers) may have no shape yet.
"""

from __future__ import annotations

import warnings
import weakref

from torch import Tensor, nn

from lowmem.blocks import Partition, coordinates, one_block, partition
from lowmem.layers import is_lazy
from lowmem.optim.checks import check_wrapping
from lowmem.optim.sharding import is_dtensor, shard_of
from lowmem.optim.watch import Watch


def read(optimizer, params, model: nn.Module | None, settings: dict):
    """Names, blocks and the model of what the optimizer was given. (groups as torch takes them, whether all the model's)."""
    kind = type(optimizer).__name__
    if params is None and model is None:
        raise TypeError(f"{kind} takes a model, parameters, (name, parameter) pairs or groups, not None")
    if isinstance(params, nn.Module) and model is None:
        params, model = None, params
    check_wrapping(getattr(params, "model", model))
    if isinstance(params, Partition):
        if settings:
            raise ValueError(f"{', '.join(settings)}: the partition is already made; pass these to partition()")
        known, model, params, settings = params, params.model, None, params.settings
    else:
        known = partition(model, **settings) if model is not None and optimizer.uses_blocks else None
    optimizer._partition_settings = settings
    if model is not None:
        follow(optimizer, model)
        optimizer._names = {p: name for name, p in model.named_parameters()}
    if known is not None:
        optimizer._blocks = {p: known[name] for name, p in known.named_parameters()}
        optimizer._names.update({p: name for name, p in known.named_parameters()})
    if params is None:
        pairs = list(known.named_parameters() if model is None else model.named_parameters())
        return [{"params": pairs}], True
    if optimizer.uses_blocks and known is None:
        warnings.warn(
            f"{kind} got parameters without a model, so every tensor is one block, which is unstable "
            f"for Transformers; pass the model itself, or {kind}(groups, model=model)",
            stacklevel=4,
        )
    return params, False


def follow(optimizer, model: nn.Module | None) -> None:
    """Keep a model in view, without keeping it alive."""
    optimizer._model = None if model is None else weakref.ref(model)
    optimizer._watch = None if model is None else Watch(model)


def named(optimizer, group: dict) -> list[tuple[str | None, Tensor]]:
    """A new group's parameters with their names: those given, else the model's, else None. Refuses what torch refuses."""
    if (model := optimizer.model()) is not None:
        optimizer._names = {**{p: name for name, p in model.named_parameters()}, **optimizer._names}
    members = group["params"]
    if isinstance(members, set):
        raise TypeError("parameters in a set have no order, which saved states need; pass a list")
    members = [members] if isinstance(members, Tensor) else list(members)
    given = [isinstance(m, tuple) for m in members]
    if any(given) and not all(given):
        raise ValueError("some parameters have names and some have none; pass (name, parameter) pairs for all of them")
    names = group.get("param_names") or [None] * len(members)
    pairs = members if all(given) else list(zip(names, members, strict=True))
    return [(name if name is not None else optimizer._names.get(p), p) for name, p in pairs]


def as_torch(optimizer, group: dict, named: list[tuple[str | None, nn.Parameter]]) -> dict:
    """A group as torch takes it, which wants names in all groups or in none; those without parameters follow the others."""
    filled = [other for other in optimizer.param_groups if other["params"]]
    if filled:
        with_names = "param_names" in filled[0]
    else:
        with_names = all(name for name, _ in named) and bool(named or optimizer._names)
        for other in optimizer.param_groups:
            other.pop("param_names", None)
            other |= {"param_names": []} if with_names else {}
    group = {key: value for key, value in group.items() if key != "param_names"} | {"params": [p for _, p in named]}
    names = [name or f"parameter {len(optimizer._blocks) + i}" for i, (name, _) in enumerate(named)]
    return {**group, "param_names": names} if with_names else group


def enter(optimizer, named: list[tuple[str | None, nn.Parameter]]) -> None:
    """What torch has taken: names, and blocks of what trains."""
    optimizer._names.update({p: name for name, p in named if name is not None and p not in optimizer._names})
    optimizer._unplaced = [*optimizer._unplaced, *(p for _, p in named if p not in optimizer._blocks or is_dtensor(p))]
    check_real(optimizer, [p for _, p in named if p.requires_grad and not is_lazy(p)])
    place(optimizer)


def release(optimizer, parameters) -> None:
    """Parameters that were frozen when the model was read, and have no state yet, may move to a group of their own."""
    moving = {p for p in parameters if p in optimizer._movable and not optimizer.state.get(p)}
    if not moving:
        return
    for group in optimizer.param_groups:
        stay = [i for i, p in enumerate(group["params"]) if p not in moving]
        for key in {"params", "param_names"} & group.keys():
            group[key][:] = [group[key][i] for i in stay]
    optimizer._movable -= moving


def place(optimizer, parameters=None) -> None:
    """Blocks of the parameters that train by now (or of those asked for), and their shards."""
    ready = [p for p in parameters or optimizer._unplaced if (parameters or p.requires_grad) and not is_lazy(p)]
    if not ready:
        return
    check_real(optimizer, ready)
    _find_blocks(optimizer, ready)
    for p in ready:
        if is_dtensor(p):
            optimizer._shards[p], optimizer._agreed = shard_of(p), False
    optimizer._unplaced = [p for p in optimizer._unplaced if p not in optimizer._blocks]


def check_real(optimizer, parameters) -> None:
    """ValueError for complex parameters."""
    for p in parameters:
        if p.is_complex():
            label = optimizer._names.get(p) or "a parameter"
            raise ValueError(f"{label}: complex parameters are not supported; use torch.view_as_real")


def _find_blocks(optimizer, parameters: list[nn.Parameter]) -> None:
    """Blocks of parameters that were frozen, or not there, when the model was looked at; warns of guesses."""
    missing = {p: optimizer._names.get(p) for p in parameters if p not in optimizer._blocks}
    model = optimizer.model() if optimizer.uses_blocks else None
    if missing and model is not None:
        found = partition(model, **optimizer._partition_settings, also=missing)
        optimizer._blocks |= {p: found[name] for name, p in found.named_parameters() if p in missing}
    for p, name in missing.items():
        if p in optimizer._blocks:
            continue
        shape, label = tuple(p.shape), name or f"parameter {len(optimizer._blocks)}"
        optimizer._blocks[p] = one_block(label, shape) if optimizer.uses_blocks else coordinates(label, shape)
        if optimizer.uses_blocks and optimizer._model is not None and p.numel() > max(shape, default=1):
            gone = (
                "is not in the model that the optimizer was built from" if model is not None else "has lost its model"
            )
            warnings.warn(f"{label} {gone}, so it is one block", stacklevel=5)
