"""Several ranks in one process: each has an optimizer that holds parts of the parameters, and sums are added by hand."""

import functools
import itertools
import math

import torch
from torch import Tensor, nn

from lowmem.optim.core.sharded_update import rounds
from lowmem.optim.core.sharding import Box, Shard, flat_boxes


class Bag(nn.Module):
    """Named parameters and nothing else."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))


@functools.cache
def places(shape: tuple[int, ...], boxes: tuple[Box, ...]) -> Tensor:
    """Flat indices of the boxes' elements, one box after the other, by index arithmetic."""
    index = torch.arange(math.prod(shape)).view(shape)
    found = [index[tuple(slice(a, a + n) for a, n in zip(box.start, box.lengths))].reshape(-1) for box in boxes]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)


def part_of(full: Tensor, boxes: tuple[Box, ...]) -> Tensor:
    """What a rank stores of a tensor: a copy of the boxes' elements."""
    return full.reshape(-1)[places(tuple(full.shape), boxes)]


def put_back(full: Tensor, boxes: tuple[Box, ...], part: Tensor) -> None:
    for box in boxes:
        target = full[tuple(slice(a, a + n) for a, n in zip(box.start, box.lengths))] if full.ndim else full
        target.copy_(part[box.offset : box.offset + box.numel].view(box.lengths))


class Ranks:
    """The same parameters on k simulated ranks. boxes[rank][name]: what that rank holds."""

    def __init__(self, build, tensors: dict[str, Tensor], boxes: list[dict[str, tuple[Box, ...]]]):
        self.boxes, self.reductions = boxes, 0
        self.parts, self.optimizers = [], []
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        for held in boxes:
            model = Bag(tensors)
            optimizer = build(model)
            parts = {n: nn.Parameter(part_of(t, held[n])) for n, t in tensors.items()}
            optimizer.replace_params(
                {p: (parts[n], Shard(self.shapes[n], held[n])) for n, p in model.named_parameters()}
            )
            self.parts.append(parts)
            self.optimizers.append(optimizer)
        for name in tensors:
            partial = any(o.layout(parts[name]).partial for o, parts in zip(self.optimizers, self.parts))
            for optimizer, parts in zip(self.optimizers, self.parts):
                ndim = len(optimizer.layout(parts[name]).frame)
                optimizer.shards.cut[parts[name]] = partial and any(stage.axes(ndim) for stage in optimizer.stages)
                optimizer.shards.checked = True

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        """One update on every rank, from the same full gradients."""
        running = []
        for optimizer, parts, held in zip(self.optimizers, self.parts, self.boxes):
            group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
            work = [(group_of[p], p, part_of(gradients[n], held[n])) for n, p in parts.items()]
            running.append(rounds(optimizer.stages, optimizer.update_local(work)))
        while True:
            pending = [next(r, None) for r in running]
            if pending[0] is None:
                assert pending == [None] * len(running)
                return
            self.reductions += 1
            for column in zip(*pending, strict=True):
                reduction = column[0][1]
                stacked = torch.stack([x for _, _, x in column])
                total = {"sum": stacked.sum(0), "max": stacked.amax(0), "min": stacked.amin(0)}[reduction]
                for _, _, x in column:
                    x.copy_(total)

    def full(self) -> dict[str, Tensor]:
        found = {n: torch.full(shape, torch.nan) for n, shape in self.shapes.items()}
        for parts, held in zip(self.parts, self.boxes):
            for n, p in parts.items():
                put_back(found[n], held[n], p.detach())
        return found


def flat_split(shapes: dict[str, tuple[int, ...]], cuts: list[int]) -> list[dict[str, tuple[Box, ...]]]:
    """All parameters one after the other, cut at the given positions: ZeRO's flat partition."""
    ends = [0, *sorted(cuts), sum(torch.Size(s).numel() for s in shapes.values())]
    ranks = []
    for a, b in itertools.pairwise(ends):
        held, at = {}, 0
        for name, shape in shapes.items():
            n = torch.Size(shape).numel()
            held[name] = flat_boxes(shape, min(max(a - at, 0), n), min(max(b - at, 0), n))
            at += n
        ranks.append(held)
    return ranks


def axis_split(shapes: dict[str, tuple[int, ...]], axis: int, ranks: int) -> list[dict[str, tuple[Box, ...]]]:
    """Every parameter in chunks along one axis as torch.chunk cuts (uneven, and empty where it is short)."""
    held = [{} for _ in range(ranks)]
    for name, shape in shapes.items():
        along = min(axis, len(shape) - 1)
        length = shape[along] if shape else 1
        chunk = -(-length // ranks)
        for rank in range(ranks):
            a, b = min(rank * chunk, length), min((rank + 1) * chunk, length)
            start = tuple(a if i == along else 0 for i in range(len(shape)))
            lengths = tuple(b - a if i == along else n for i, n in enumerate(shape))
            if not shape and rank:
                held[rank][name] = ()
            else:
                held[rank][name] = (Box(start, lengths),)
    return held


def grid_split(shapes: dict[str, tuple[int, ...]], rows: int, columns: int) -> list[dict[str, tuple[Box, ...]]]:
    """A rows x columns mesh: first along axis 0, then along axis 1; short tensors only along axis 0, on column 0."""
    found = []
    for upper in axis_split(shapes, 0, rows):
        for column in range(columns):
            held = {}
            for name, shape in shapes.items():
                box = upper[name][0] if upper[name] else None
                if box is None or len(shape) < 2:
                    held[name] = upper[name] if column == 0 else ()
                    continue
                chunk = -(-shape[1] // columns)
                a, b = min(column * chunk, shape[1]), min((column + 1) * chunk, shape[1])
                start = (box.start[0], a, *box.start[2:])
                held[name] = (Box(start, (box.lengths[0], b - a, *box.lengths[2:])),)
            found.append(held)
    return found
