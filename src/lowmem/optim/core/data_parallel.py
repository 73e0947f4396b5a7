"""Updates inside backward on several processes: who averages gradients, and the norm over all parts.

fully_shard (FSDP2): its hook fires once per parameter, in backward, with the averaged gradient of this rank's part.
Plain data-parallel: FusedBackward(..., process_group=...) averages each gradient in the hook itself.
DistributedDataParallel is refused: its hook shows the gradient of one rank, and it restores .grad afterwards.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowmem.optim.core.hooks import owner
from lowmem.optim.core.sharding import Shard, reduce_all

NO_DDP = (
    "the model is wrapped in DistributedDataParallel, which averages gradients only after the update inside backward; "
    "drop the wrapper and pass process_group=torch.distributed.group.WORLD, or use fully_shard"
)


def is_distributed() -> bool:
    """Whether torch.distributed is initialised."""
    return dist.is_available() and dist.is_initialized()


def check_setting(optimizer, process_group) -> None:
    """Raises for a DDP-wrapped model, and for a process group where gradients are averaged already."""
    model = optimizer.model()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise RuntimeError(NO_DDP)
    if process_group and not is_distributed():
        raise RuntimeError("process_group is given but torch.distributed is not initialised; start with torchrun")
    sharded = next((p for g in optimizer.param_groups for p in g["params"] if optimizer.shard(p)), None)
    if process_group and sharded is not None:
        raise RuntimeError(
            f"{optimizer.name(sharded)}: is sharded, so its gradient arrives averaged; drop process_group"
        )


def check_averaging(optimizer, process_group) -> None:
    """Raises when several processes would train copies that drift apart (the official LOMO does that silently)."""
    alone = process_group is not None or not is_distributed() or dist.get_world_size() == 1
    if alone or any(optimizer.shard(p) for g in optimizer.param_groups for p in g["params"]):
        return
    raise RuntimeError(
        f"{dist.get_world_size()} processes run, but nothing averages the gradients of this optimizer; pass "
        "process_group=torch.distributed.group.WORLD, shard the model with fully_shard, or pass process_group=False if "
        "each process trains its own model"
    )


def check_same_leaves(inner, parameters: list[nn.Parameter], leaves, process_group) -> None:
    """Before backward, data-parallel: raises on every process when a parameter gets a gradient on some of them only.

    Averaging would then mix up gradients of different parameters, or hang. One small reduction.
    """
    if not process_group:
        return
    seen, world = set(leaves), dist.get_world_size(process_group)
    used = presence([p in seen for p in parameters], parameters[0].device, process_group)
    for p, count in zip(parameters, used):
        if 0 < count < world:
            raise RuntimeError(
                f"{inner.name(p)}: gets a gradient on {count} of {world} processes only; use it on all of them, if only as "
                "+ 0 * parameter.sum() in the loss"
            )


def presence(here: list[bool], device, group) -> list[int]:
    """On how many processes of a group each flag is set."""
    total = torch.tensor(here, dtype=torch.int32, device=device)
    dist.all_reduce(total, group=group)
    return total.tolist()


def check_fired(inner, params, fired: set[nn.Parameter]) -> None:
    """After backward: no gradient may have bypassed its hook or reappeared; under fully_shard some must have arrived."""
    if params.bundle_of and not fired:
        raise RuntimeError(
            "fully_shard kept all gradients to itself; under set_requires_gradient_sync(False) they accumulate, which an "
            "update inside backward cannot do: leave it on"
        )
    for p in params.group_of:
        if p.grad is None or not (p in fired or p in params.handles):
            continue
        p.grad = None
        raise RuntimeError(
            f"{inner.name(p)}: its gradient was put back after it had been used; {NO_DDP}"
            if p in fired
            else f"{inner.name(p)}: its gradient did not pass through the hook; only fully_shard (FSDP2) runs hooks on shards"
        )


def reshard(model: nn.Module) -> None:
    """After an update under fully_shard: drop gathered weights that it was told to keep, since they are outdated."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def average(gradient: Tensor, group) -> Tensor:
    """The mean of a gradient over a group, in place, the same bits on every member."""
    dist.all_reduce(gradient, group=group)
    return gradient.div_(dist.get_world_size(group))


def numbers(norms: list[tuple[nn.Parameter, Tensor]]) -> list[tuple[nn.Parameter, float]]:
    """The norms as Python numbers, with one wait per device and dtype."""
    kinds: dict = {}
    for p, norm in norms:
        kinds.setdefault((norm.device, norm.dtype), []).append((p, norm))
    return [(p, x) for pairs in kinds.values() for (p, _), x in zip(pairs, torch.stack([n for _, n in pairs]).tolist())]


def total_square(optimizer, norms: list[tuple[nn.Parameter, float]]) -> float:
    """Sum of squares of all gradients from the norms of the parts here; one reduction per process group."""
    whole, parts = 0.0, {}
    for group in optimizer.param_groups:  # every process asks for the same sums, also where it measured nothing
        for p in group["params"]:
            if (shard := optimizer.shard(p)) is not None and shard.groups:
                parts.setdefault((shard.groups, shard.device), 0.0)
    for p, norm in norms:
        shard = optimizer.shard(p)
        if shard is not None and shard.groups:
            parts[shard.groups, shard.device] += norm * norm
        else:
            whole += norm * norm
    pending = [
        (Shard((), (), *where), "sum", torch.tensor(x, dtype=torch.float64, device="cpu")) for where, x in parts.items()
    ]
    reduce_all(pending)
    return whole + sum(float(x) for _, _, x in pending)


def watch_ddp(optimizer):
    """A handle of a hook that raises when the model runs inside DistributedDataParallel; None where none can."""
    model = optimizer.model()
    return model.register_forward_pre_hook(_refuse_ddp) if model is not None and is_distributed() else None


def _refuse_ddp(module: nn.Module, _arguments) -> None:

    inside = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if inside is not None and any(owner(p) is not None for p in module.parameters()):  # not for a copied module
        raise RuntimeError(NO_DDP)
