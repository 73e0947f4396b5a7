"""How a rule sees one tensor, and how its stages run: eagerly, or compiled once per shape class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowmem.blocks import ParamBlocks


@dataclasses.dataclass
class Work:
    """What a stage sees of one tensor: p, g and state s in the rule's form (views, fp32 or fp64), scalars h."""

    p: Tensor
    g: Tensor
    s: dict[str, Tensor]
    h: dict


def run_stages(stages: tuple, work: Work) -> None:
    """Stages in order on one whole tensor: what a stage returns is already the total."""
    totals: list = []
    for stage in stages:
        totals.append(stage(work, totals))


def block_pieces(blocks: ParamBlocks, p: Tensor, g: Tensor, state: dict, h: dict) -> list[Work]:
    """One Work per segment, tensors as (outer, count, run); state tensors of `count` scalars as (1, count, 1)."""
    if blocks.kind in ("coordinate", "tensor"):
        shape = (1, -1, 1) if blocks.kind == "coordinate" else (1, 1, -1)
        s = {k: v.view(shape) if v.numel() == p.numel() else v.view(1, -1, 1) for k, v in state.items()}
        size = 1 if blocks.kind == "coordinate" else blocks.numel
        return [Work(p.view(shape), g.view(shape), s, {**h, "size": size})]
    found, first = [], 0
    merged = (math.prod(blocks.shape[: blocks.merge]), *blocks.shape[blocks.merge :])
    outer, inner = math.prod(merged[: blocks.axis]), math.prod(merged[blocks.axis + 1 :])
    for start, stop, size in blocks.segments:
        count, run = (stop - start) // size, size * inner

        def cut(x: Tensor, start=start, stop=stop, count=count, run=run) -> Tensor:
            return x.view(outer, -1)[:, start * inner : stop * inner].unflatten(1, (count, run))

        s = {
            k: v[first : first + count].view(1, count, 1) if v.shape == (blocks.count,) else cut(v)
            for k, v in state.items()
        }
        found.append(Work(cut(p), cut(g), s, {**h, "size": outer * run}))
        first += count
    return found


_compiled: dict = {}


def compiled_stages(stages: tuple) -> Callable:
    """One compiled function per rule, with dynamic shapes: it recompiles per shape class, not per parameter."""
    if stages not in _compiled:

        def run(p: Tensor, g: Tensor, s: dict, h: dict) -> None:
            run_stages(stages, Work(p, g, s, h))

        _compiled[stages] = torch.compile(run, dynamic=True)
    return _compiled[stages]


def axpy(x: Tensor, y: Tensor, a) -> None:
    """x += a * y in place, for a number or a 0-dim tensor."""
    x.add_(y * a) if isinstance(a, Tensor) else x.add_(y, alpha=a)


def as_tensors(h: dict, device) -> dict:
    return {k: torch.tensor(v, dtype=torch.float32, device=device) if isinstance(v, float) else v for k, v in h.items()}


def flat_like(value: Tensor, p: Tensor) -> Tensor:
    return value.view(-1) if value.shape == p.shape else value
