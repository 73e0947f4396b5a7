"""Adam-mini's stages on many tensors of one device, with the scalars of all their blocks in one flat tensor.

Of the 14 operations that the stages start per tensor ten work on block scalars alone. Here those run once for all
tensors, decay and the first moment as lists, and two operations are left per tensor: the norm of the gradient and the
update. Plain PyTorch, for every device that has no kernel of its own; the same operations on the same numbers as the
stages, so the same bits. (Not for CPUs, where starting an operation costs little.)

16-bit weights, gradients and moments go through fp32 copies, as in the stages: a list at a time, whose elements are no
more than those of the largest tensor, so that the copies take no more memory than the stages' do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.core.layout import Layout
from lowmem.optim.core.rule import TensorView, Update, views

FEWEST = 4  # tensors; below, the stages start no more operations
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = {torch.float32: 1.8e19, torch.float64: 1.3e154}  # of a norm: v, a square, must not become infinite for good
OWN_SCALARS = 1 << 16  # a tensor with more scalars than this is better off without a copy of them


def adam_mini(optimizer, updates: list[Update]) -> list[Update]:
    """Make the updates that can be made together; returns the others."""
    rest, together = [], {}
    for update in updates:
        if _fits(update):
            together.setdefault((id(update.hyper), update.param.device), []).append(update)
        else:
            rest.append(update)
    most = max((update.layout.held for update in updates), default=0)
    for (_, device), alike in together.items():
        for part in _parts(alike, most):
            if len(part) < FEWEST:
                rest += part
            else:
                _with_copies(optimizer, part, device)
    return rest


def _parts(updates: list[Update], most: int) -> list[list[Update]]:
    """The updates in lists: those that need no copies, then lists of at most so many elements of those that do."""
    found, room = [[update for update in updates if not _copied(update)]], 0
    for update in filter(_copied, updates):
        held = update.layout.held
        if held > room:
            found.append([])
            room = most
        found[-1].append(update)
        room -= held
    return found


def _copied(update: Update) -> bool:
    return any(t.dtype != torch.float32 for t in (update.param, update.grad, update.state["exp_avg"]))


def _with_copies(optimizer, updates: list[Update], device: torch.device) -> None:
    """_step on fp32 tensors, and their numbers back into those of other dtypes, rounded to nearest."""
    params, moments = [one.param for one in updates], [one.state["exp_avg"] for one in updates]
    p, g, m = map(_exact, (params, [one.grad for one in updates], moments))
    states = [{"exp_avg": x, "exp_avg_sq": one.state["exp_avg_sq"]} for one, x in zip(updates, m)]
    exact = [one._replace(param=w, grad=d, state=s) for one, w, d, s in zip(updates, p, g, states)]
    _step(optimizer, exact, device)
    for stored, copies in ((params, p), (moments, m)):
        changed = [(t, copy) for t, copy in zip(stored, copies) if t is not copy]
        if changed:
            torch._foreach_copy_(*map(list, zip(*changed)))


def _exact(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as fp32 ones: those that are, themselves; copies of the others, made together."""
    others = [t for t in tensors if t.dtype != torch.float32]
    made = [torch.empty_like(t, dtype=torch.float32) for t in others]
    if made:
        torch._foreach_copy_(made, others)
    copies = iter(made)
    return [t if t.dtype == torch.float32 else next(copies) for t in tensors]


def _fits(update: Update) -> bool:
    group, p, g, state, h, _ = update
    tensors, v = (p, g, state["exp_avg"]), state["exp_avg_sq"]
    return (
        h["reduce"] == "mean"
        and v.numel() <= OWN_SCALARS
        and v.dtype == torch.float32
        and all(t.dtype in FLOATS and t.device == p.device and t.is_contiguous() for t in (*tensors, v))
        and (group["rounding"] == "nearest" or p.dtype == state["exp_avg"].dtype == torch.float32)
    )


def _step(optimizer, updates: list[Update], device: torch.device) -> None:
    """See adam_mini.block_statistic, block_rate and update, whose operations these are, in their order."""
    h = updates[0].hyper
    p, g, m = [one.param for one in updates], [one.grad for one in updates], [one.state["exp_avg"] for one in updates]
    if h["factor"] != 1:
        torch._foreach_mul_(g, h["factor"])
    if h["decay_factor"] != 1:
        torch._foreach_mul_(p, h["decay_factor"])
    torch._foreach_lerp_(m, g, h["one_minus_beta1"])
    pieces = [view for update in updates for view in _views(optimizer, update)]
    seconds = [view.state["exp_avg_sq"] for view in pieces]
    counts = [v.numel() for v in seconds]
    statistic = torch.empty(1, sum(counts), 1, device=device)
    for view, part in zip(pieces, statistic.split(counts, 1)):
        torch.linalg.vector_norm(view.grad, dim=(0, 2), keepdim=True, out=part)
    by = _sizes(optimizer, tuple(update.layout for update in updates), pieces, counts, device)
    statistic.clamp_(max=LARGEST[torch.float32]).square_()
    statistic.div_(by) if device.type == "cpu" else statistic.mul_(by)
    v = torch.cat(seconds, 1).mul_(h["beta2"]).add_(statistic.mul_(h["one_minus_beta2"]))
    torch._foreach_copy_(seconds, v.split(counts, 1))
    rate = v.sqrt_().mul_(h["inv_sqrt_bias_correction2"]).add_(h["eps"]).reciprocal_().mul_(h["step_size"])
    for view, part in zip(pieces, rate.split(counts, 1)):
        view.param.addcmul_(view.state["exp_avg"], part, value=-1)


def _views(optimizer, update: Update) -> list[TensorView]:
    _, p, g, state, h, lay = update
    moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
    return views(optimizer.form, lay, p, g, moments, optimizer.replicated(lay.blocks), h)


def _sizes(optimizer, layouts: tuple[Layout, ...], pieces: list[TensorView], counts: list[int], device) -> Tensor:
    """Elements of each block, (1, blocks, 1), kept while the layouts stay the same. Except on a CPU their reciprocals in
    fp32, by which other devices multiply where the stages divide by one number."""
    key = (device, layouts[0])
    found = optimizer.plans.get(key)
    if found is None or found[0] != layouts:
        numbers = torch.tensor([float(work.size) for work in pieces], device="cpu")
        numbers = numbers.repeat_interleave(torch.tensor(counts, device="cpu"))
        numbers = numbers.view(1, -1, 1) if device.type == "cpu" else numbers.reciprocal().view(1, -1, 1)
        found = optimizer.plans[key] = (layouts, numbers.to(device))
    return found[1]
