"""State dictionaries: what is added to torch's, what is refused, and how sharded state is completed and placed."""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.sharding import flat_part, is_dtensor, reduce_all
from lowmem.optim.stages import framed, take


def pack(optimizer, saved: dict) -> dict:
    """torch's dictionary, plus each group's block signatures, so that a state of another partition is refused."""
    for group, live in zip(saved["param_groups"], optimizer.param_groups):
        if optimizer.uses_blocks:
            group["blocks"] = [optimizer.blocks(p).signature for p in live["params"]]
        group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.") if group["state_dtype"] else None
    return saved


def unpack(state_dict: dict) -> dict:
    """The inverse of pack, without touching its argument."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    for group in groups:
        group.pop("blocks", None)
        dtype = group.get("state_dtype")
        group["state_dtype"] = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return {**state_dict, "param_groups": groups}


def check_loadable(optimizer, state_dict: dict) -> None:
    """ValueError, naming the parameter, when groups, blocks or shapes are not the optimizer's."""
    saved_groups, live_groups = state_dict["param_groups"], optimizer.param_groups
    if len(saved_groups) != len(live_groups):
        raise ValueError(f"the state has {len(saved_groups)} parameter groups, the optimizer {len(live_groups)}")
    for saved, live in zip(saved_groups, live_groups):
        if len(saved["params"]) != len(live["params"]):
            raise ValueError(
                f"a saved group has {len(saved['params'])} parameters, the optimizer's {len(live['params'])}"
            )
        for p, signature in zip(live["params"], saved.get("blocks", []) if optimizer.uses_blocks else []):
            blocks = optimizer.blocks(p)
            if signature != blocks.signature:
                raise ValueError(
                    f"{optimizer.name(p)}: the state was saved with blocks {signature}, this optimizer has "
                    f"{blocks.signature}; build it with the same partition settings"
                )
        for i, p in zip(saved["params"], live["params"]):
            blocks = optimizer.blocks(p)
            small, found = optimizer.small(blocks), state_dict["state"].get(i)
            fresh = optimizer.init(p, {**live, **saved}, blocks, p.dtype) if found else {}
            for key, value in fresh.items():
                shape = tuple(found[key].shape) if key in found else None
                want = tuple(value.shape) if key in small or optimizer.shard(p) is None else blocks.shape
                if shape not in (want, tuple(value.shape)):
                    raise ValueError(f"{optimizer.name(p)}: saved {key} has shape {shape}, expected {want}")


def placed(optimizer, p: Tensor, key: str, value: Tensor) -> Tensor:
    """A saved state tensor as this process keeps it: its own copy, on the parameter's device, its part of a whole."""
    if key == "step":  # counted on the host: on a GPU, reading it would wait for the device at every tensor
        return value.detach().to("cpu", copy=True)
    shard = optimizer.shard(p)
    device = "cpu" if optimizer.offloads(p, key) else p.device
    if shard is None or key in optimizer.small(optimizer.blocks(p)) or value.shape != shard.shape:
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
            "through lowmem.sharded_checkpoint, which reshards"
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
            for key in optimizer.small(optimizer.blocks(p)):
                mine = framed(state[key], optimizer.form)
                total = torch.zeros_like(mine)
                for piece in optimizer.layout(p).pieces:
                    take(total, piece.ranges).copy_(take(mine, piece.ranges))
                pending.append((shard, "sum", total))
                targets.append(mine)
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
