"""State dictionaries: what is added to torch's, and how sharded state is completed and placed. Loading: loading.py."""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.core.eight_bit import CODE
from lowmem.optim.core.rule import in_frame, narrowed
from lowmem.optim.core.sharding import flat_part, is_dtensor, reduce_all
from lowmem.optim.core.storage import is_coded


def pack(optimizer, saved: dict) -> dict:
    """torch's dictionary, plus (name, signature of its blocks) of each parameter, so that another partition is refused."""
    for group, live in zip(saved["param_groups"], optimizer.param_groups):
        if optimizer.uses_blocks:
            known = [p for p in live["params"] if p in optimizer.members.blocks]
            group["blocks"] = [(optimizer.name(p), optimizer.blocks(p).signature) for p in known]
        if is_coded(live):
            group["state_code"] = CODE
        group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.") if group["state_dtype"] else None
    return saved


def placed(optimizer, p: Tensor, key: str, value: Tensor) -> Tensor:
    """A saved state tensor as this process keeps it: its own copy, on the parameter's device, its part of a whole."""
    shard = optimizer.shard(p)
    device = "cpu" if optimizer.offloads(p, key) else p.device
    if shard is None or optimizer.keeps_whole(p, key) or value.shape != shard.shape:
        value = value.detach().to(device, copy=True)
        return value.pin_memory() if optimizer.offloads(p, key) else value
    if not is_dtensor(p):  # a flat part
        return flat_part(value.detach(), shard).to(device, copy=True)
    if not is_dtensor(value):
        from torch.distributed.tensor import DTensor

        box = shard.boxes[0]
        part = value.detach()[tuple(slice(a, a + n) for a, n in zip(box.start, box.lengths))]
        part = part.to(p.to_local().device, copy=True).contiguous()
        return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    if value.device_mesh != p.device_mesh or value.placements != p.placements:
        raise ValueError(
            f"{optimizer.name(p)}: saved {key} is sharded as {value.placements} over another mesh or axis; load it "
            "through lowmem.training.sharded_checkpoint, which reshards"
        )
    return value.detach().clone()


def complete(optimizer) -> None:
    """Bring small state of parameters that no process cuts up to date everywhere: each process knows its own blocks.

    One collective per group; every process must call it.
    """
    pending, targets = [], []
    for group in optimizer.param_groups:
        for p in group["params"]:
            shard, state = optimizer.shard(p), optimizer.state.get(p)
            if shard is None or not shard.groups or not state or optimizer.is_cut(p):
                continue
            for key in optimizer.replicated(optimizer.blocks(p)):
                values = in_frame(state[key], optimizer.form)
                total = torch.zeros_like(values)
                for piece in optimizer.layout(p).pieces:
                    narrowed(total, piece.ranges).copy_(narrowed(values, piece.ranges))
                pending.append((shard, "sum", total))
                targets.append(values)
    if pending:
        reduce_all(pending)
        for target, (_, _, total) in zip(targets, pending):
            target.copy_(total)


def full_state_dict(optimizer, to_cpu: bool = True) -> dict:
    """The state dictionary as one process would have it: no DTensors, loadable by an optimizer of an unsharded model.
    Its tensors are copies.

    Every process must call it; each gets the whole.
    """
    saved = optimizer.state_dict()
    state = {}
    for i, entry in saved["state"].items():
        full = {key: value.full_tensor() if is_dtensor(value) else value.clone() for key, value in entry.items()}
        state[i] = {key: value.to("cpu") if to_cpu else value for key, value in full.items()}
    return {**saved, "state": state}
