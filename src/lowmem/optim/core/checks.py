"""Checks before a step: does the model still fit the optimizer, are gradients usable. Nothing is changed here.

A changed model is detected cheaply: Watch compares the objects that modules have registered by identity, about 30 ns each.
Only what differs is then looked up by name.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from lowmem.optim.core.sharding import SHARD_FIRST, Shard, is_dtensor, local, reduce_all

NO_SPARSE = "sparse gradients are not supported; build the embedding with sparse=False"
REPLACED = (
    "a group holds a tensor that was not there when the optimizer was built: a framework has replaced the parameters; build "
    "the optimizer after it has wrapped the model, and under DeepSpeed ZeRO use lowmem.integrations.deepspeed.ForDeepSpeed"
)


CAPTURED = (
    "step() inside a CUDA graph would replay with this step's learning rate and bias corrections for ever; capture forward "
    "and backward only, and call step() outside"
)
MOST_VIEWS = 4  # fully_shard shows sharded and gathered weights in turn


def refuse_capture() -> None:
    """RuntimeError while a CUDA graph is captured: numbers of the step are computed on the host."""
    if not torch.compiler.is_compiling() and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(CAPTURED)


def check_model(optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Raises when a parameter does not belong to the optimizer, or its shape has changed."""
    for p in parameters:
        blocks = optimizer.members.blocks.get(p)
        if blocks is None:
            raise RuntimeError(REPLACED)
        if p.shape != blocks.shape and (is_dtensor(p) or optimizer.shard(p) is None):
            raise RuntimeError(
                f"{optimizer.name(p)}: shape is {tuple(p.shape)} but was {blocks.shape} when the optimizer was built; "
                "build a new optimizer after changing the model"
            )


def check_wrapping(model: nn.Module | None) -> None:
    """Raises for a model in FullyShardedDataParallel (FSDP1), whose flat parameters have lost their rows and heads."""
    module = sys.modules.get("torch.distributed.fsdp")
    parts = () if module is None or model is None else model.modules()
    if any(isinstance(part, module.FullyShardedDataParallel) for part in parts):
        raise ValueError("FullyShardedDataParallel flattens parameters; use torch.distributed.fsdp.fully_shard instead")


def check_any_gradient(optimizer) -> None:
    """RuntimeError for a first step without any gradient on several processes: the model's weights have been replaced."""
    if not optimizer.state and torch.distributed.is_available() and torch.distributed.is_initialized():
        names = [optimizer.name(p) for group in optimizer.param_groups for p in group["params"]]
        if names:
            raise RuntimeError(
                f"{names[0]} and all others have no gradient; if the model was sharded after the optimizer was built: "
                f"{SHARD_FIRST}"
            )


def check_finite(optimizer, work: list[tuple[dict, nn.Parameter, Tensor]]) -> bool:
    """Whether every gradient is finite, on every process that holds a part of these parameters."""
    by_device: dict = {}
    for _, _, g in work:
        if g.numel():
            by_device.setdefault((g.device, g.dtype), []).append(local(g))
    largest = [torch._foreach_norm(gs, torch.inf) for gs in by_device.values()]  # a 2-norm could overflow in fp16
    finite = all(bool(torch.stack(sizes).isfinite().all()) for sizes in largest)
    if shards := optimizer.shards.of:
        flag = torch.tensor(float(finite), device="cpu")
        placements = dict.fromkeys((shard.groups, shard.device) for shard in shards.values())
        reduce_all([(Shard((), (), *placement), "min", flag) for placement in placements])
        finite = bool(flag)
    if not finite and optimizer.nonfinite == "raise":
        names = (optimizer.name(p) for _, p, g in work if not bool(local(g).isfinite().all()))
        name = next(names, "a part on another rank")
        raise FloatingPointError(f"{name}: gradient holds inf or nan; nothing was updated")
    return finite


def is_rehearsal(optimizer) -> bool:
    """Whether step() is torch.distributed.checkpoint making missing state: zero gradients at a zero learning rate."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    zero_rate = all(float(group["lr"]) == 0.0 for group in optimizer.param_groups)
    return zero_rate and not optimizer.state and all(p.grad is not None for p in trained)


# -- is the model still the same? ----------------------------------------------------------------------------------------


class Watch:
    """The registered modules and parameters of a model, as they were when last looked at."""

    def __init__(self, model: nn.Module):
        self._tables = _tables(model)
        self._views = [list(chain.from_iterable(map(dict.values, self._tables)))]
        self.frozen: list[nn.Parameter] = []  # parameters of no optimizer that may be unfrozen later

    def unchanged(self) -> bool:
        """Whether the model holds the same objects as at an earlier check that passed."""
        if any(p.requires_grad for p in self.frozen):
            return False
        now = list(chain.from_iterable(map(dict.values, self._tables)))
        return any(len(now) == len(view) and all(map(operator.is_, now, view)) for view in self._views)

    def accept(self, model: nn.Module) -> None:
        """Accept what the model holds now as valid, too."""
        tables = _tables(model)
        if len(tables) != len(self._tables) or not all(map(operator.is_, tables, self._tables)):
            self._tables, self._views = tables, []
        self._views = [*self._views[1 - MOST_VIEWS :], list(chain.from_iterable(map(dict.values, tables)))]


def _tables(model: nn.Module) -> list[dict]:
    return [table for module in model.modules() for table in (module._parameters, module._modules)]


def check_members(optimizer) -> None:
    """Raises when a parameter that trains is no longer in the model; warns about new ones that are in no group."""
    members = optimizer.members
    if members.watch is None or members.watch.unchanged() or (model := members.model) is None:
        return
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    now = dict(model.named_parameters())
    for p in owned & set(members.names) - set(now.values()):
        if p.requires_grad or optimizer.state.get(p):  # losing a frozen one is harmless
            _refuse_gone(members.names[p], p, model, now)
    names = {members.names.get(p) for p in owned if p.requires_grad or optimizer.state.get(p)}
    added = {p: name for name, p in now.items() if p not in owned | members.left_out and name not in names}
    new = [name for p, name in added.items() if p.requires_grad]
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        warnings.warn(
            f"{new[0]}{more}: was added to the model, or unfrozen, after the optimizer was built and is in none of its groups, "
            "so it does not train; call opt.add_param_group({'params': [...]}), or give it an optimizer of its own",
            stacklevel=5,
        )
    members.left_out |= {p for p in added if p.requires_grad}  # warn once
    members.watch.frozen = [p for p in added if not p.requires_grad]
    members.watch.accept(model)


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
