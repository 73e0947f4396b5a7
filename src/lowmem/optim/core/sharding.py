"""Which part of a parameter this process holds, and what processes must tell each other about it.

A shard is a short list of boxes: rectangles of the parameter whose elements lie one box after the other in this
process's storage. A whole tensor is one box; a DTensor (FSDP2, tensor parallel, both) is one box; elements a to b of a
flattened parameter (ZeRO) are a few: the rest of a row, full rows, the start of a row. Rules never see any of this:
rule.py cuts boxes into pieces, and sums that other processes hold parts of are added over the shard's groups.
"""

from __future__ import annotations

import dataclasses
import math
import sys

import torch
from torch import Tensor

SHARD_FIRST = "shard the model first (fully_shard, parallelize_module), then build the optimizer from it"
REDUCTIONS = {"sum": 0.0, "max": -math.inf, "min": math.inf}  # and what an absent part counts as


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of the parameter: first index and length per axis, and where its elements start in local storage."""

    start: tuple[int, ...]
    lengths: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        """Elements of the box."""
        return math.prod(self.lengths)


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's part of a parameter of the given full shape.

    groups: process groups over whose members the parameter is split, one per split mesh axis; sums go over each in
    turn. A mesh axis that only replicates is not among them. device: where those groups communicate, None: anywhere.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    groups: tuple = ()
    device: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements held here."""
        return sum(box.numel for box in self.boxes)


def whole(shape) -> tuple[Box, ...]:
    """The one box of a tensor that is not sharded."""
    return (Box((0,) * len(shape), tuple(shape)),)


def flat_boxes(shape, start: int, stop: int) -> tuple[Box, ...]:
    """Boxes of elements start..stop of the flattened tensor, in storage order: at most 2 * ndim - 1."""
    boxes, offset = [], 0
    for first, lengths in _cover(tuple(shape), start, stop):
        boxes.append(Box(first, lengths, offset))
        offset += math.prod(lengths)
    return tuple(boxes)


def _cover(shape: tuple[int, ...], start: int, stop: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(first index, lengths) of rectangles that hold elements start..stop of a flattened tensor, in order."""
    if start >= stop:
        return []
    if not shape:
        return [((), ())]
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)

    def inside(index: int, a: int, b: int) -> list:
        return [((index, *s), (1, *n)) for s, n in _cover(shape[1:], a, b)]

    if first == last:
        return inside(first, head, tail)
    found = inside(first, head, row) if head else []
    first += bool(head)
    if last > first:
        found.append(((first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:])))
    return found + inside(last, 0, tail)


def flat_part(full: Tensor, shard: Shard) -> Tensor:
    """What a shard of flat ranges stores of a whole tensor: its boxes one after the other, a 1-D copy."""
    parts = [full[tuple(slice(a, a + n) for a, n in zip(b.start, b.lengths))].reshape(-1) for b in shard.boxes]
    return torch.cat(parts) if parts else full.new_empty(0)


def is_dtensor(x) -> bool:
    """Whether x is a DTensor, without importing that machinery: where nobody has, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This process's part of a DTensor, or the tensor itself."""
    return x.to_local() if is_dtensor(x) else x


def shard_of(p: Tensor) -> Shard | None:
    """The shard of a DTensor; None for any other tensor. Raises ValueError for partial sums in place of values."""
    if not is_dtensor(p):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, shape = p.device_mesh, tuple(p.shape)
    if any(placement.is_partial() for placement in p.placements):
        raise ValueError(f"a parameter of shape {shape} holds partial sums ({p.placements}); redistribute it first")
    lengths, start = compute_local_shape_and_global_offset(p.shape, mesh, p.placements)
    if tuple(lengths) != tuple(p.to_local().shape):
        raise ValueError(
            f"a parameter of shape {shape} with placements {p.placements} holds {tuple(p.to_local().shape)} here, not "
            f"the rectangle {tuple(lengths)} at {tuple(start)}; shard it evenly, or along another axis"
        )
    split = tuple(
        mesh.get_group(axis)
        for axis, placement in enumerate(p.placements)
        if not placement.is_replicate()
        and mesh.size(axis) > 1  # also the strided ones of fully_shard over tensor parallel
    )
    return Shard(shape, (Box(tuple(start), tuple(lengths)),), split, mesh.device_type)


# -- between processes ---------------------------------------------------------------------------------------------------


def reduce_all(tensors: list[tuple[Shard, str, Tensor]]) -> None:
    """Add (or take the largest or smallest of) each tensor over its shard's groups, in place.

    One collective per process group, reduction and dtype, however many tensors. Every process must pass the same list.
    """
    import torch.distributed as dist

    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    bundles: dict = {}
    for shard, reduction, tensor in tensors:
        for group in shard.groups:
            bundles.setdefault((group, reduction, tensor.dtype, shard.device or tensor.device), []).append(tensor)
    for (group, reduction, _, device), members in bundles.items():
        joined = torch.cat([t.reshape(-1) for t in members]).to(device)
        dist.all_reduce(joined, op=operations[reduction], group=group)
        parts = joined.split([t.numel() for t in members])
        for t, part in zip(members, parts):
            t.copy_(part.view(t.shape))


def agree(parameters: list[tuple[str, Shard, bool]]) -> list[bool]:
    """Ask all members once, before the first step: for each (name, shard, cut here), whether it is cut anywhere.

    Raises RuntimeError on every process when names or shapes differ, or parts do not add up to the whole.
    """
    import torch.distributed as dist

    cut = [False] * len(parameters)
    by_groups: dict = {}
    for i, (_, shard, _) in enumerate(parameters):
        if shard.groups:
            by_groups.setdefault(shard.groups, []).append(i)
    for groups, members in by_groups.items():
        own = [(parameters[i][0], parameters[i][1].shape, parameters[i][1].numel, parameters[i][2]) for i in members]
        by_rank = [(dist.get_rank(), own)]
        for group in groups:
            gathered: list = [None] * dist.get_world_size(group)
            dist.all_gather_object(gathered, by_rank, group=group)
            by_rank = [entry for part in gathered for entry in part]
        for rank, entries in by_rank:
            for a, b in zip(own, entries):
                if a[:2] != b[:2]:
                    raise RuntimeError(
                        f"rank {rank} has {b[0]} {b[1]} where rank {dist.get_rank()} has {a[0]} {a[1]}; build the same "
                        "model and optimizer on every rank, with the same mesh"
                    )
            if len(own) != len(entries):
                raise RuntimeError(
                    f"rank {rank} has {len(entries)} parameters sharded over this mesh, rank {dist.get_rank()} "
                    f"{len(own)}; build the same model and optimizer on every rank, with the same mesh"
                )
        for i, column in zip(members, zip(*(entries for _, entries in by_rank))):
            name, shape, _, _ = column[0]
            held = sum(part[2] for part in column)
            if held != math.prod(shape):
                raise RuntimeError(
                    f"{name}: the ranks hold {held} of its {math.prod(shape)} elements; each element must be on one "
                    "rank of the group"
                )
            cut[i] = any(part[3] for part in column)
    return cut


class Shards:
    """Which of an optimizer's parameters are not whole on this process, and which updates need sums over processes.

    of: {parameter: shard}. cut: whether a shard's update needs sums, known once all processes have checked. layouts: the
    pieces of what is held here, also of whole parameters. A copy is empty: process groups have no copies.
    """

    def __init__(self, of: dict[Tensor, Shard] | None = None):
        self.reset(of or {})

    def reset(self, of: dict[Tensor, Shard]) -> None:
        """Hold these, and forget the others."""
        self.of, self.cut, self.layouts, self.checked = of, {}, {}, not of

    def add(self, p: Tensor, shard: Shard) -> None:
        """Hold one more; all processes must check again."""
        self.of[p], self.checked = shard, False

    def check(self, parameters: list[tuple[Tensor, str, bool, bool]]) -> None:
        """On every process: agree about (parameter, name, whether a block of it is cut here, whether its rule sums)."""
        anywhere = agree([(name, self.of[p], here) for p, name, here, _ in parameters])
        self.cut = {p: cut and sums for (p, _, _, sums), cut in zip(parameters, anywhere)}
        self.checked = True

    def __reduce__(self):
        return Shards, ()
