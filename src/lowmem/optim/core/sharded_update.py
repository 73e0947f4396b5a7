"""Stages over parameters that are cut between processes: sums over pieces, then over processes, then the next stage.

Moments in 8-bit codes need one more round: the largest size in each of their blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lowmem.optim.core.rule import Stage, TensorView, Update, in_frame, narrowed, run_stages, views
from lowmem.optim.core.sharding import REDUCTIONS, SHARD_FIRST, Shard, is_dtensor, local
from lowmem.optim.core.storage import Copies


class ShardedUpdate:
    """One parameter's update where other processes hold the rest of it: its views, their sums, and the complete totals.

    update: what this process stores of it. cut: whether its stages need sums over processes.
    """

    def __init__(self, optimizer, update: Update, shard: Shard, cut: bool):
        self.form, self.lay, self.hyper = optimizer.form, update.layout, update.hyper
        self.shard, self.cut, self.rounding = shard, cut, update.group["rounding"]
        self.reduction = optimizer.reduction(update.group)
        self.replicated = optimizer.replicated(update.layout.blocks)
        self.p, self.g = update.param, update.grad
        self.state = {key: value for key, value in update.state.items() if key != "step"}
        self.exact = torch.promote_types(self.p.dtype, torch.float32)
        self.totals: list[dict] = [{} for _ in self.lay.pieces]  # of each piece
        self.views: list[TensorView] = []
        self.whole: TensorView | None = None  # small state alone, as `settle` sees it
        self.copies: Copies | None = None
        self.largest_sizes: dict[str, Tensor] = {}
        self.sums: list[Tensor] = []

    def open(self) -> None:
        """Make fp32 contiguous copies where storage is not that, and the views on them."""
        if self.copies is not None:
            return
        self.copies = Copies(self.p, self.state, self.lay)
        gradient, state = self.g.to(self.p.device, self.exact).contiguous(), self.copies.state
        self.views = views(self.form, self.lay, self.copies.p, gradient, state, self.replicated, self.hyper)
        small = {key: in_frame(state[key], self.form) for key in self.replicated}
        size = self.views[0].size if self.views else 0
        self.whole = TensorView(None, None, small, self.hyper, self.lay.frame, size)

    def close(self, write: bool) -> None:
        """Drop the copies; with write, round them back into storage first. Tensors that were not copied stay."""
        if write:
            self.copies.write(self.rounding, self.largest_sizes)
        elif not self.copies.made and self.g.dtype == self.exact:
            return  # nothing was copied, so nothing is gained
        self.copies, self.views = None, []

    def run(self, stages: tuple[Stage, ...]) -> None:
        """All stages, where every block is complete on one process."""
        self.open()
        for view in self.views:
            run_stages(stages, view)

    def largest(self) -> list[Tensor]:
        """After the last stage: what scales of moments in codes need from every process."""
        self.open()
        self.largest_sizes = self.copies.largest()
        return list(self.largest_sizes.values())

    def measure(self, stage: Stage) -> list[Tensor]:
        """Run a stage on every piece; its sums over this process's pieces, each with the frame's lengths or 1."""
        self.open()
        frame = self.lay.frame
        full = [
            torch.full(
                [length if axis in axes else 1 for axis, length in enumerate(frame)],
                REDUCTIONS[self.reduction],
                dtype=self.exact,
                device=self.p.device,
            )
            for axes in stage.axes(len(frame))
        ]
        for view, piece, totals in zip(self.views, self.lay.pieces, self.totals):
            for whole, part in zip(full, stage.run(view, totals) or ()):
                target = narrowed(whole, piece.ranges)
                if self.reduction == "sum":
                    target.add_(part)
                else:
                    target.copy_((torch.maximum if self.reduction == "max" else torch.minimum)(target, part))
        self.sums = full
        if stage.pure:
            self.close(write=False)
        return full

    def settle(self, stage: Stage) -> None:
        """With complete sums: update the small state once, and hand every piece its part of the totals."""
        self.open()
        found = self.sums if stage.settle is None else stage.settle(self.whole, self.sums)
        for piece, totals in zip(self.lay.pieces, self.totals):
            totals[stage.name] = [narrowed(x, piece.ranges) for x in found or ()]


def rounds(stages: tuple[Stage, ...], updates: list[ShardedUpdate]) -> Iterator[list[tuple[Shard, str, Tensor]]]:
    """All stages of all updates. Yields, where sums need it, (shard, reduction, tensor) triples, which the caller completes
    over processes in place before it goes on."""
    cut = [update for update in updates if update.cut]
    for stage in stages:
        pending = [(update.shard, update.reduction, x) for update in cut for x in update.measure(stage)]
        if pending:
            yield pending
        for update in cut:
            update.settle(stage)
    for update in updates:
        if not update.cut:
            update.run(stages)
    pending = [(update.shard, "max", x) for update in updates for x in update.largest()]
    if pending:
        yield pending
    for update in updates:
        update.close(write=True)


def local_gradient(name: str, p: Tensor, g: Tensor) -> Tensor:
    """The part of a gradient that belongs to the part of a parameter held here."""
    if is_dtensor(p) and not is_dtensor(g):
        if g.shape == p.to_local().shape:
            return g
        raise RuntimeError(f"{name}: the parameter is sharded but its gradient is a plain tensor; {SHARD_FIRST}")
    if is_dtensor(g) and g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    return local(g)
