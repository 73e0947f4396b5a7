"""A first moment from a saved state, out of 8-bit codes or into them, as the optimizer that loads it keeps it.

Into codes it is rounded once, to nearest; out of codes and back is exact (eight_bit.py). Between states in codes both go
over as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.core.eight_bit import CODE, block_ids, decoded, encode, largest, scale_count, scales
from lowmem.optim.core.sharding import is_dtensor
from lowmem.optim.core.state_dict import placed
from lowmem.optim.core.storage import SCALE


def check_code(name: str, kind: str, group: dict) -> None:
    """ValueError for a state in other codes or blocks than this version's."""
    if group.get("state_code") != CODE:
        raise ValueError(
            f"{name}: the state keeps its first moment in the 8-bit code {group.get('state_code')!r}, this {kind} reads "
            f"{CODE!r}; save it with state_dtype=torch.float32 in the version that wrote it"
        )


def wrong_scales(scale, count: int) -> str | None:
    """What a saved state has in place of `count` scales, each nan or 0 or more; None where they are right."""
    if scale is None:
        return "no scales"
    if not isinstance(scale, Tensor) or not scale.is_floating_point():
        return f"scales that are {getattr(scale, 'dtype', type(scale).__name__)}"
    if tuple(scale.shape) != (count,):
        return f"{scale.numel()} scales" + (f" of shape {tuple(scale.shape)}" if scale.ndim != 1 else "")
    return "scales below 0" if bool((scale < 0).any()) else None


def recoded(
    optimizer, p: Tensor, key: str, value: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """State `key`, and its scales if `dtype` is int8, from a saved tensor and its scales (None: it is not in codes)."""
    name, shape = optimizer.name(p), optimizer.blocks(p).shape
    count = scale_count(optimizer.blocks(p).numel)
    if value.dtype == torch.int8 and (got := wrong_scales(scale, count)):
        raise ValueError(
            f"{name}: saved {key} is in 8-bit codes with {got}, its {optimizer.blocks(p).numel} elements need {count}"
        )
    part = tuple(value.shape) != tuple(shape)  # what one process holds of a flattened parameter
    if value.dtype != torch.int8 and part:
        raise ValueError(
            f"{name}: saved {key} is one process's part, whose 8-bit scales depend on the other processes; save the whole state"
        )
    if value.dtype != dtype and is_dtensor(value):
        value = value.full_tensor()
    if value.dtype != torch.int8:
        scale = scales(largest(value, None, value.numel()))
        codes = torch.empty(value.shape, dtype=torch.int8, device=value.device)
        encode(codes, value.float(), scale)
        value = codes
    elif dtype != torch.int8:
        shard = optimizer.shard(p)
        ids = block_ids(shard.shape, shard.boxes, value.device) if part and shard is not None else None
        return {key: placed(optimizer, p, key, decoded(value, scale.to(value.device), ids).to(dtype))}
    here = scale.detach().to(p.device, torch.float32, copy=True)
    return {key: placed(optimizer, p, key, value), key + SCALE: here}
