"""Stages over parameters that are cut between processes: sums over pieces, then over processes, then the next stage.

Moments in 8-bit codes need one more round: the largest size in each of their blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lowmem.optim.core.rule import Layout, Stage, Work, framed, run_stages, take, works
from lowmem.optim.core.sharding import REDUCTIONS, SHARD_FIRST, Shard, is_dtensor, local
from lowmem.optim.core.storage import Copies


class Job:
    """One cut parameter during one step: stored tensors, their pieces, and the small state in its frame.

    how: (whether its stages need sums over processes, form, reduction, rounding).
    stored: (p, g, state, small, h): what this process stores (plain tensors), and names of state kept whole everywhere.
    """

    def __init__(self, shard: Shard, lay: Layout, how: tuple, stored: tuple):
        self.shard, self.lay = shard, lay
        self.cut, self.form, self.reduction, self.rounding = how
        self.p, self.g, self.state, self.small, self.h = stored
        self.exact = torch.promote_types(self.p.dtype, torch.float32)
        self.totals: list[list[Tensor]] = []
        self.part_totals: list[list] = [[] for _ in lay.pieces]
        self.works: list[Work] = []
        self.copies: Copies | None = None
        self.most: dict[str, Tensor] = {}
        self.sums: list[Tensor] = []

    def open(self) -> None:
        """Make fp32 contiguous copies where storage is not that, and the views on them."""
        if self.copies is not None:
            return
        self.copies = Copies(self.p, self.state, self.lay)
        gradient, state = self.g.to(self.p.device, self.exact).contiguous(), self.copies.state
        self.works = works(self.form, self.lay, self.copies.p, gradient, state, self.small, self.h)
        small = {key: framed(state[key], self.form) for key in self.small}
        size = self.works[0].size if self.works else 0
        self.whole = Work(None, None, small, self.h, self.lay.frame, size)

    def close(self, write: bool) -> None:
        """Forget the copies; with write, round them back into storage first. What was never copied stays."""
        if write:
            self.copies.write(self.rounding, self.most)
        elif not self.copies.made and self.g.dtype == self.exact:
            return  # nothing was copied, so nothing is gained
        self.copies, self.works = None, []

    def run(self, stages: tuple[Stage, ...]) -> None:
        """All stages, where every block is complete on one process."""
        self.open()
        for work in self.works:
            run_stages(stages, work)

    def largest(self) -> list[Tensor]:
        """After the last stage: what scales of moments in codes need from every process."""
        self.open()
        self.most = self.copies.largest()
        return list(self.most.values())

    def measure(self, stage: Stage) -> list[Tensor]:
        """Run a stage on every piece; its sums over this process's pieces, each with the frame's lengths or 1."""
        self.open()
        frame = self.lay.frame
        full = [
            torch.full(
                [length if axis in kept else 1 for axis, length in enumerate(frame)],
                REDUCTIONS[self.reduction],
                dtype=self.exact,
                device=self.p.device,
            )
            for kept in stage.sums(len(frame))
        ]
        for work, piece, totals in zip(self.works, self.lay.pieces, self.part_totals):
            for whole, part in zip(full, stage.run(work, totals) or ()):
                mine = take(whole, piece.ranges)
                if self.reduction == "sum":
                    mine.add_(part)
                else:
                    mine.copy_((torch.maximum if self.reduction == "max" else torch.minimum)(mine, part))
        self.sums = full
        if stage.pure:
            self.close(write=False)
        return full

    def settle(self, stage: Stage) -> None:
        """With complete sums: update the small state once, and hand every piece its part of the totals."""
        self.open()
        self.totals.append(self.sums)
        if stage.settle is not None:
            self.totals[-1] = stage.settle(self.whole, self.totals)
        for piece, totals in zip(self.lay.pieces, self.part_totals):
            totals.append([take(x, piece.ranges) for x in self.totals[-1] or ()])


def rounds(stages: tuple[Stage, ...], jobs: list[Job]) -> Iterator[list[tuple[Shard, str, Tensor]]]:
    """All stages on all jobs. Yields, where sums need it, (shard, reduction, tensor) triples, which the caller completes
    over processes in place before it goes on."""
    cut = [job for job in jobs if job.cut]
    for stage in stages:
        pending = [(job.shard, job.reduction, x) for job in cut for x in job.measure(stage)]
        if pending:
            yield pending
        for job in cut:
            job.settle(stage)
    for job in jobs:
        if not job.cut:
            job.run(stages)
    pending = [(job.shard, "max", x) for job in jobs for x in job.largest()]
    if pending:
        yield pending
    for job in jobs:
        job.close(write=True)


def scaled(g: Tensor, factor: float) -> Tensor:
    """A gradient times a number: 16-bit ones as an fp32 copy, others in place."""
    if factor == 1.0:
        return g
    return (g.float() if g.dtype in (torch.float16, torch.bfloat16) else g).mul_(factor)


def local_gradient(name: str, p: Tensor, g: Tensor) -> Tensor:
    """The part of a gradient that belongs to the part of a parameter held here."""
    if is_dtensor(p) and not is_dtensor(g):
        if g.shape == p.to_local().shape:
            return g
        raise RuntimeError(f"{name}: the parameter is sharded but its gradient is a plain tensor; {SHARD_FIRST}")
    if is_dtensor(g) and g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    return local(g)
