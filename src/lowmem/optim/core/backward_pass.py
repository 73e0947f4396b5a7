"""One backward in which each gradient is used, and freed, as soon as it is complete: measured, or handed to the rule."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from lowmem.optim.core import data_parallel
from lowmem.optim.core.autograd_graph import Graph, others
from lowmem.optim.core.checks import NO_SPARSE
from lowmem.optim.core.clipping import norm_of, prepared
from lowmem.optim.core.sharded_update import local_gradient


@dataclasses.dataclass
class Pass:
    """One backward, while it runs. mode: what hooks do with gradients, "measure" or "update". scale: the loss's factor.
    coefficient: of norm clipping, known after the first pass.

    fired: parameters whose gradient has arrived. norms: measured ones. waiting: (work, factor) pairs of fully_shard groups
    that are not complete yet, by the group's number.
    """

    mode: str
    scale: float
    coefficient: float = 1.0
    fired: set[nn.Parameter] = dataclasses.field(default_factory=set)
    norms: list[tuple[nn.Parameter, Tensor]] = dataclasses.field(default_factory=list)
    waiting: dict[int, list] = dataclasses.field(default_factory=dict)


def run(fused, current: Pass, loss: Tensor, graph: Graph, keep_graph: bool) -> None:
    """One backward of a FusedBackward's loss in which hooks measure or update; every parameter may fire once.

    Other parameters get their .grad as usual and unscaled, but not from a measuring pass.
    """
    aside = []
    if current.mode == "measure" or current.scale != 1.0:
        aside = [(p, p.grad) for p in others(fused, graph) if p.requires_grad]
    for p, _ in aside:
        p.grad = None
    fused.current, fused.inner.shared = current, {}
    try:
        (loss * current.scale if current.scale != 1.0 else loss).backward(retain_graph=keep_graph)
        flush(fused, current, *current.waiting)
        data_parallel.check_fired(fused.inner, fused.params, current.fired)
    except RuntimeError as error:
        if keep_graph and "donated buffer" in str(error):
            raise RuntimeError(
                "the graph of a compiled model cannot run twice; pass a closure: opt.backward(lambda: loss_of(batch))"
            ) from error
        raise
    finally:
        fused.current = fused.inner.shared = None
        current.waiting.clear()
        fused.inner.finish()
        for p in current.fired:
            p.grad = None
        for p, before in aside:
            fresh = p.grad.div_(current.scale) if current.mode == "update" and p.grad is not None else None
            p.grad = before if fresh is None else fresh if before is None else before.add_(fresh)


def take(fused, current: Pass, p: nn.Parameter) -> None:
    """A gradient is complete: measure it or use it, and drop it. For the hook of a FusedBackward."""
    inner = fused.inner
    if p in current.fired:
        raise RuntimeError(
            f"{inner.name(p)}: its gradient arrived twice in one backward, because a reentrant checkpoint shares this weight; "
            "use torch.utils.checkpoint with use_reentrant=False"
            + ("" if current.mode == "measure" else "; weights of this step are already changed, reload a checkpoint")
        )
    current.fired.add(p)
    gradient, p.grad = p.grad, None
    if gradient.layout != torch.strided:
        raise RuntimeError(f"{inner.name(p)}: {NO_SPARSE}")
    if (shard := inner.shard(p)) is not None:
        gradient = local_gradient(inner.name(p), p, gradient)
        if gradient.device.type == "cpu" and shard.device == "cuda":  # offloaded: the copy may still be on its way
            torch.cuda.current_stream().synchronize()
    elif fused.process_group:
        gradient = data_parallel.average(gradient, fused.process_group)
    if current.mode == "measure":
        current.norms.append((p, norm_of(gradient)))
        return
    gradient, factor = prepared(fused, current, p, gradient)
    work = (fused.params.group_of[p], p, gradient)
    if (number := fused.params.bundle_of.get(p)) is None:
        inner.update([work], factor)
        return
    waiting = current.waiting.setdefault(number, [])  # fully_shard made all of a group's gradients at once
    waiting.append((work, factor))
    if len(waiting) == fused.params.bundle_size[number]:
        flush(fused, current, number)


@torch.no_grad()
def flush(fused, current: Pass, *numbers: int) -> None:
    """Update the parts that have arrived of some fully_shard groups, with one reduction per stage and group."""
    for number in numbers:
        if work := current.waiting.pop(number, None):
            fused.inner.update([triple for triple, _ in work], work[0][1])


def total_norm(inner, current: Pass) -> tuple[float, str | None]:
    """(norm of all gradients that a pass has measured, unscaled; the name of one that is inf or nan, None if none is)."""
    norms = data_parallel.numbers(current.norms)
    norm = math.sqrt(data_parallel.total_square(inner, norms)) / current.scale
    if math.isfinite(norm):
        return norm, None
    names = (inner.name(p) for p, x in norms if not math.isfinite(x))
    return norm, next(names, "a part on another rank")
