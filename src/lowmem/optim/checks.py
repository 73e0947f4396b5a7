"""Checks before a step: does the model still fit the optimizer, are gradients usable. Nothing is changed here."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowmem.optim.sharding import Shard, is_dtensor, local, reduce_all

NO_SPARSE = "sparse gradients are not supported; build the embedding with sparse=False"
SHARD_FIRST = "shard the model first (fully_shard, parallelize_module), then build the optimizer from it"
REPLACED = (
    "a group holds a tensor that was not there when the optimizer was built: a framework has replaced the parameters; build "
    "the optimizer after it has wrapped the model, and under DeepSpeed ZeRO use lowmem.deepspeed.ForDeepSpeed"
)
RECHECK_MODEL_EVERY = 64  # steps; walking all modules costs about as much as a small model's update


def check_model(optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Raises when a parameter's shape, or now and then the model's list of parameters, is not what it was."""
    for p in parameters:
        blocks = optimizer._blocks.get(p)
        if blocks is None:
            raise RuntimeError(REPLACED)
        if p.shape != blocks.shape and (is_dtensor(p) or optimizer.shard(p) is None):
            raise RuntimeError(
                f"{optimizer.name(p)}: shape is {tuple(p.shape)} but was {blocks.shape} when the optimizer was built; "
                "build a new optimizer after changing the model"
            )
    model = optimizer.model()
    optimizer._since_check -= 1
    if model is None or optimizer._since_check > 0:
        return
    optimizer._since_check = RECHECK_MODEL_EVERY
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    now = dict(model.named_parameters())
    for p in owned & set(optimizer._names) - set(now.values()):
        name = optimizer._names[p]
        if name in now and is_dtensor(p) and not is_dtensor(now[name]):
            continue  # between forward and backward, fully_shard shows the gathered weights
        if name in now and not is_dtensor(p) and (is_dtensor(now[name]) or _is_fully_sharded(model)):
            raise RuntimeError(f"{name}: was sharded after the optimizer was built; {SHARD_FIRST}")
        what = "was replaced by another tensor" if name in now else "is no longer in the model"
        raise RuntimeError(
            f"{name}: {what} since the optimizer was built; build a new optimizer after changing the model"
        )


def check_wrapping(model: nn.Module | None) -> None:
    """Raises for a model in FullyShardedDataParallel (FSDP1), whose flat parameters have lost their rows and heads."""
    module = sys.modules.get("torch.distributed.fsdp")
    parts = () if module is None or model is None else model.modules()
    if any(isinstance(part, module.FullyShardedDataParallel) for part in parts):
        raise ValueError("FullyShardedDataParallel flattens parameters; use torch.distributed.fsdp.fully_shard instead")


def _is_fully_sharded(model: nn.Module) -> bool:
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and any(isinstance(part, module.FSDPModule) for part in model.modules())


def check_any_gradient(optimizer) -> None:
    """On several processes, a first step without any gradient: the model's weights are other tensors by now."""
    if not optimizer.state and torch.distributed.is_available() and torch.distributed.is_initialized():
        names = [optimizer.name(p) for group in optimizer.param_groups for p in group["params"]]
        if names:
            raise RuntimeError(
                f"{names[0]} and all others have no gradient; if the model was sharded after the optimizer was built: "
                f"{SHARD_FIRST}"
            )


def check_finite(optimizer, work: list[tuple[dict, nn.Parameter, Tensor]], shards: dict[nn.Parameter, Shard]) -> bool:
    """Whether every gradient is finite, on every process that holds a part of these parameters."""
    by_device: dict = {}
    for _, _, g in work:
        if g.numel():
            by_device.setdefault((g.device, g.dtype), []).append(local(g))
    largest = [torch._foreach_norm(gs, torch.inf) for gs in by_device.values()]  # a 2-norm could overflow in fp16
    finite = all(bool(torch.stack(sizes).isfinite().all()) for sizes in largest)
    if shards:
        flag = torch.tensor(float(finite))
        everywhere = dict.fromkeys((shard.groups, shard.device) for shard in shards.values())
        reduce_all([(Shard((), (), *where), "min", flag) for where in everywhere])
        finite = bool(flag)
    if not finite and optimizer._nonfinite == "raise":
        names = (optimizer.name(p) for _, p, g in work if not bool(local(g).isfinite().all()))
        name = next(names, "a part on another rank")
        raise FloatingPointError(f"{name}: gradient holds inf or nan; nothing was updated")
    return finite


def is_rehearsal(optimizer) -> bool:
    """Whether step() is torch.distributed.checkpoint making missing state: gradients of zero at a rate of zero."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    still = all(float(group["lr"]) == 0.0 for group in optimizer.param_groups)
    return still and not optimizer.state and all(p.grad is not None for p in trained)
