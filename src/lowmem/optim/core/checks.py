"""Checks before a step: does the model still fit the optimizer, are gradients usable. Nothing is changed here."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowmem.optim.core.eight_bit import is_scale, scale_count
from lowmem.optim.core.sharding import SHARD_FIRST, Shard, is_dtensor, local, reduce_all

NO_SPARSE = "sparse gradients are not supported; build the embedding with sparse=False"
REPLACED = (
    "a group holds a tensor that was not there when the optimizer was built: a framework has replaced the parameters; build "
    "the optimizer after it has wrapped the model, and under DeepSpeed ZeRO use lowmem.integrations.deepspeed.ForDeepSpeed"
)


def check_model(optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Raises when a parameter is none of the optimizer's, or its shape is not what it was."""
    for p in parameters:
        blocks = optimizer._blocks.get(p)
        if blocks is None:
            raise RuntimeError(REPLACED)
        if p.shape != blocks.shape and (is_dtensor(p) or optimizer.shard(p) is None):
            raise RuntimeError(
                f"{optimizer.name(p)}: shape is {tuple(p.shape)} but was {blocks.shape} when the optimizer was built; "
                "build a new optimizer after changing the model"
            )


def check_state(lay, form: str, state: dict[str, Tensor], small: tuple[str, ...]) -> None:
    """RuntimeError for a state tensor that somebody has replaced by one of another size."""
    for key, value in state.items():
        scales = scale_count(lay.blocks.numel) if is_scale(key) else None
        if scales is not None:
            fits = value.numel() == scales
        elif key in small:
            fits = value.numel() == lay.blocks.count if form == "blocks" else value.ndim == len(lay.frame)
        else:
            fits = value.numel() == lay.held
        if not fits:
            want = scales or (lay.blocks.count if form == "blocks" and key in small else lay.held)
            raise RuntimeError(
                f"{lay.blocks.name}: {key} has {value.numel()} elements, not {want}; to reset state, assign an empty "
                "dictionary to opt.state[parameter]"
            )


def check_wrapping(model: nn.Module | None) -> None:
    """Raises for a model in FullyShardedDataParallel (FSDP1), whose flat parameters have lost their rows and heads."""
    module = sys.modules.get("torch.distributed.fsdp")
    parts = () if module is None or model is None else model.modules()
    if any(isinstance(part, module.FullyShardedDataParallel) for part in parts):
        raise ValueError("FullyShardedDataParallel flattens parameters; use torch.distributed.fsdp.fully_shard instead")


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
        flag = torch.tensor(float(finite), device="cpu")
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
