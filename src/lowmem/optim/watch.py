"""Sees, before each step, when a model's parameters are no longer those that an optimizer was built from.

A glance compares the objects that modules have registered by identity, about 30 ns each, so that it costs nothing beside
a step. Only what differs is then looked at by name.
"""

from __future__ import annotations

import operator
import sys
import warnings
from itertools import chain

from torch import nn

from lowmem.optim.sharding import SHARD_FIRST, is_dtensor

MOST_VIEWS = 4  # fully_shard shows sharded and gathered weights in turn


class Watch:
    """The registered modules and parameters of a model, as they were when last looked at."""

    def __init__(self, model: nn.Module):
        self._tables = _tables(model)
        self._views = [list(chain.from_iterable(map(dict.values, self._tables)))]
        self.frozen: list[nn.Parameter] = []  # parameters of no optimizer that may be thawed later

    def unchanged(self) -> bool:
        """Whether the model holds the same objects as at a time when they were found well."""
        if any(p.requires_grad for p in self.frozen):
            return False
        now = list(chain.from_iterable(map(dict.values, self._tables)))
        return any(len(now) == len(view) and all(map(operator.is_, now, view)) for view in self._views)

    def accept(self, model: nn.Module) -> None:
        """What the model holds now is well, too."""
        tables = _tables(model)
        if len(tables) != len(self._tables) or not all(map(operator.is_, tables, self._tables)):
            self._tables, self._views = tables, []
        self._views = [*self._views[1 - MOST_VIEWS :], list(chain.from_iterable(map(dict.values, tables)))]


def _tables(model: nn.Module) -> list[dict]:
    return [table for module in model.modules() for table in (module._parameters, module._modules)]


def check_members(optimizer) -> None:
    """Raises when a parameter that trains is no longer in the model; warns of those that came and are in no group."""
    model = optimizer.model()
    if model is None or optimizer._watch.unchanged():
        return
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    now = dict(model.named_parameters())
    for p in owned & set(optimizer._names) - set(now.values()):
        if p.requires_grad or optimizer.state.get(p):  # of a frozen one nothing is lost
            _refuse_gone(optimizer._names[p], p, model, now)
    names = {optimizer._names.get(p) for p in owned if p.requires_grad or optimizer.state.get(p)}
    come = {p: name for name, p in now.items() if p not in owned | optimizer._left_out and name not in names}
    new = [name for p, name in come.items() if p.requires_grad]
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        warnings.warn(
            f"{new[0]}{more}: came into the model after the optimizer was built and is in none of its groups, so it does "
            "not train; call opt.add_param_group({'params': [...]}), or give it an optimizer of its own",
            stacklevel=5,
        )
    optimizer._left_out |= {p for p in come if p.requires_grad}  # said once
    optimizer._watch.frozen = [p for p in come if not p.requires_grad]
    optimizer._watch.accept(model)


def _refuse_gone(name: str, p: nn.Parameter, model: nn.Module, now: dict[str, nn.Parameter]) -> None:
    if name in now and is_dtensor(p) and not is_dtensor(now[name]):
        return  # between forward and backward, fully_shard shows the gathered weights
    if name in now and not is_dtensor(p) and (is_dtensor(now[name]) or _is_fully_sharded(model)):
        raise RuntimeError(f"{name}: was sharded after the optimizer was built; {SHARD_FIRST}")
    what = "was replaced by another tensor" if name in now else "is no longer in the model"
    raise RuntimeError(f"{name}: {what} since the optimizer was built; build a new optimizer after changing the model")


def _is_fully_sharded(model: nn.Module) -> bool:
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and any(isinstance(part, module.FSDPModule) for part in model.modules())
