"""Adam-mini's stages on many tensors of one device, with the scalars of all their blocks in one flat tensor.

Of the 14 operations that the stages start per tensor ten work on block scalars alone. Here those run once for all
tensors, decay and the first moment as lists, and two operations are left per tensor: the norm of the gradient and the
update. Plain PyTorch, for every device that has no kernel of its own; the same operations on the same numbers as the
stages, so the same bits.

16-bit weights, gradients and moments go through fp32 copies, as in the stages: a list at a time, whose elements are no
more than those of the largest tensor, so that the copies take no more memory than the stages' do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.core.rule import Layout, Work, works

WITHOUT = ("cpu",)  # devices where starting an operation costs little, and going through memory once more does not
FEWEST = 4  # tensors; below, the stages start no more operations
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = {torch.float32: 1.8e19, torch.float64: 1.3e154}  # of a norm: v, a square, must not become infinite for good
OWN_SCALARS = 1 << 16  # a tensor with more scalars than this is better off without a copy of them


def adam_mini(optimizer, ready: list) -> list:
    """Step what can be stepped of `ready`, [(group, p, g, state, scalars, layout)]; returns the others."""
    if torch.compiler.is_compiling() or optimizer._compile:
        return ready
    rest, together = [], {}
    for entry in ready:
        if _fits(entry):
            together.setdefault((id(entry[4]), entry[1].device), []).append(entry)
        else:
            rest.append(entry)
    most = max((entry[5].held for entry in ready), default=0)
    for (_, device), entries in together.items():
        for part in _parts(entries, most):
            if len(part) < FEWEST:
                rest += part
            else:
                _with_copies(optimizer, part, device)
    return rest


def _parts(entries: list, most: int) -> list[list]:
    """The entries in lists: those that need no copies, then lists of at most so many elements of those that do."""
    found, room = [[entry for entry in entries if not _copied(entry)]], 0
    for entry in filter(_copied, entries):
        held = entry[5].held
        if held > room:
            found.append([])
            room = most
        found[-1].append(entry)
        room -= held
    return found


def _copied(entry: tuple) -> bool:
    return any(t.dtype != torch.float32 for t in (entry[1], entry[2], entry[3]["exp_avg"]))


def _with_copies(optimizer, entries: list, device: torch.device) -> None:
    """_step on fp32 tensors, and their numbers back into those of other dtypes, rounded to nearest."""
    stored = [entry[1] for entry in entries], [entry[2] for entry in entries], [e[3]["exp_avg"] for e in entries]
    p, g, m = map(_exact, stored)
    states = [{"exp_avg": x, "exp_avg_sq": entry[3]["exp_avg_sq"]} for entry, x in zip(entries, m)]
    _step(optimizer, [(e[0], *own, *e[4:]) for e, *own in zip(entries, p, g, states)], device)
    for tensors, exact in ((stored[0], p), (stored[2], m)):
        changed = [(t, copy) for t, copy in zip(tensors, exact) if t is not copy]
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


def _fits(entry: tuple) -> bool:
    group, p, g, state, h, _lay = entry
    tensors, v = (p, g, state["exp_avg"]), state["exp_avg_sq"]
    return (
        p.device.type not in WITHOUT
        and h["reduce"] == "mean"
        and v.numel() <= OWN_SCALARS
        and v.dtype == torch.float32
        and all(t.dtype in FLOATS and t.device == p.device and t.is_contiguous() for t in (*tensors, v))
        and (group["rounding"] == "nearest" or p.dtype == state["exp_avg"].dtype == torch.float32)
    )


def _step(optimizer, entries: list, device: torch.device) -> None:
    """See adam_mini.block_statistic, block_rate and update, whose operations these are, in their order."""
    h = entries[0][4]
    p, g, m = ([entry[1] for entry in entries], [entry[2] for entry in entries], [e[3]["exp_avg"] for e in entries])
    if h["factor"] != 1:
        torch._foreach_mul_(g, h["factor"])
    if h["keep"] != 1:
        torch._foreach_mul_(p, h["keep"])
    torch._foreach_lerp_(m, g, h["gain1"])
    pieces = [work for entry in entries for work in _works(optimizer, entry)]
    seconds = [work.s["exp_avg_sq"] for work in pieces]
    counts = [v.numel() for v in seconds]
    statistic = torch.empty(1, sum(counts), 1, device=device)
    for work, part in zip(pieces, statistic.split(counts, 1)):
        torch.linalg.vector_norm(work.g, dim=(0, 2), keepdim=True, out=part)
    by = _sizes(optimizer, tuple(entry[5] for entry in entries), pieces, counts, device)
    statistic.clamp_(max=LARGEST[torch.float32]).square_()
    statistic.div_(by) if device.type == "cpu" else statistic.mul_(by)
    v = torch.cat(seconds, 1).mul_(h["beta2"]).add_(statistic.mul_(h["gain2"]))
    torch._foreach_copy_(seconds, v.split(counts, 1))
    rate = v.sqrt_().mul_(h["bias2_rsqrt"]).add_(h["eps"]).reciprocal_().mul_(h["step_size"])
    for work, part in zip(pieces, rate.split(counts, 1)):
        work.p.addcmul_(work.s["exp_avg"], part, value=-1)


def _works(optimizer, entry: tuple) -> list[Work]:
    _, p, g, state, h, lay = entry
    moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
    return works(optimizer.form, lay, p, g, moments, optimizer.small(lay.blocks), h)


def _sizes(optimizer, layouts: tuple[Layout, ...], pieces: list[Work], counts: list[int], device) -> Tensor:
    """Elements of each block, (1, blocks, 1), kept while the layouts stay the same. Except on a CPU their reciprocals in
    fp32, by which other devices multiply where the stages divide by one number."""
    key = (device, layouts[0])
    found = optimizer.plans.get(key)
    if found is None or found[0] != layouts:
        numbers = torch.tensor([float(work.size) for work in pieces]).repeat_interleave(torch.tensor(counts))
        numbers = numbers.view(1, -1, 1) if device.type == "cpu" else numbers.reciprocal().view(1, -1, 1)
        found = optimizer.plans[key] = (layouts, numbers.to(device))
    return found[1]
