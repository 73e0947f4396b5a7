"""A first moment in one byte per element: codes, and one fp32 scale per 256 elements.

Blocks are elements 256 k ... 256 k + 255 of the flattened whole parameter, whoever holds them. With s the largest size in a
block, an element m is kept as

    q = round(127 * sqrt(|m| / s)) * sign(m)        and read as        (q / 127) * |q / 127| * s

The root spends the codes where a moment has most of its elements, near 0: benchmarks/eight_bit_moment.py compares it with
equal steps and with the dynamic code of Dettmers et al. (arXiv 2110.02861). It needs no table.

A block with an inf or nan has the scale nan, and reads as nan altogether: as in fp32, what is not a number stays visible.
To fp32 and back is exact: the largest element reads as s, so scales and codes come out as they were.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowmem.optim.core.sharding import Box

BLOCK = 256
LEVELS = 127
SMALLEST = 1e-30  # scales below count as this one when codes are chosen, so that 1 / s is finite
CODE = f"root, blocks of {BLOCK}"


def scale_count(numel: int) -> int:
    """Scales of so many elements: one for every BLOCK of them."""
    return -(-numel // BLOCK)


def decoded(q: Tensor, scale: Tensor, ids: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that codes stand for, in the shape of the codes. ids: the block of each element, None: in order."""
    root = q.to(dtype).reshape(-1).mul_(1 / LEVELS)
    x = root.abs().mul_(root)
    if ids is not None:
        return x.mul_(scale.to(dtype)[ids]).view(q.shape)
    whole = x.numel() // BLOCK * BLOCK
    x[:whole].view(-1, BLOCK).mul_(scale[: whole // BLOCK].to(dtype).unsqueeze(1))
    if whole < x.numel():
        x[whole:].mul_(scale[-1].to(dtype))
    return x.view(q.shape)


def largest(x: Tensor, ids: Tensor | None, numel: int) -> Tensor:
    """The largest size in each block of a parameter with so many elements, as far as x holds it; inf also for nan.

    The largest over all processes, through `scales`, are the scales.
    """
    size = x.reshape(-1).abs()
    found = torch.zeros(scale_count(numel), dtype=torch.float32, device=x.device)
    if ids is not None:
        found.scatter_reduce_(0, ids, size.float(), "amax")
    else:
        whole = size.numel() // BLOCK * BLOCK
        found[: whole // BLOCK] = size[:whole].view(-1, BLOCK).amax(1)
        if whole < size.numel():
            found[-1] = size[whole:].amax()
    return found.nan_to_num_(math.inf, math.inf)


def scales(largest: Tensor) -> Tensor:
    """Of complete largest sizes: nan for a block with what is not finite."""
    return torch.where(largest.isfinite(), largest, math.nan)


def encode(target: Tensor, x: Tensor, scale: Tensor, ids: Tensor | None = None, rounding: str = "nearest") -> None:
    """Codes of x into target, with these scales. Stochastic: either neighbour, so that the mean is x."""
    inverse = scale.clamp(min=SMALLEST).reciprocal().to(x.dtype)
    size = x.reshape(-1).abs()
    if ids is not None:
        size.mul_(inverse[ids])
    else:
        whole = size.numel() // BLOCK * BLOCK
        size[:whole].view(-1, BLOCK).mul_(inverse[: whole // BLOCK].unsqueeze(1))
        if whole < size.numel():
            size[whole:].mul_(inverse[-1])
    if rounding == "stochastic":
        lower = size.sqrt().mul_(LEVELS).floor_().clamp_(max=LEVELS - 1)
        below, above = (lower / LEVELS).square_(), ((lower + 1) / LEVELS).square_()
        code = lower.add_(torch.rand_like(size) < (size - below) / (above - below))
    else:
        code = size.sqrt_().mul_(LEVELS).round_()
    code = code.nan_to_num_(0.0, 0.0, 0.0).copysign_(x.reshape(-1))
    target.copy_(code.to(torch.int8).view(target.shape), non_blocking=target.device != x.device)


def block_ids(shape: tuple[int, ...], boxes: tuple[Box, ...], device) -> Tensor:
    """The scale block of each element that a process stores of a parameter."""
    parts = []
    for box in boxes:
        at = torch.zeros((), dtype=torch.int64, device=device)
        for start, length, size in zip(box.start, box.lengths, shape):
            at = at.unsqueeze(-1) * size + torch.arange(start, start + length, device=device)
        parts.append(at.reshape(-1) // BLOCK)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)
