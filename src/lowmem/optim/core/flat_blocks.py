"""Adam-mini's stages on many fp32 tensors of one device, with the scalars of all their blocks in one flat tensor.

Of the 14 operations that the stages start per tensor ten work on block scalars alone. Here those run once for all
tensors, decay and the first moment as lists, and two operations are left per tensor: the norm of the gradient and the
update. Plain PyTorch, for every device that has no kernel of its own; the same operations on the same numbers as the
stages, so the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.optim.core.rule import Layout, Work, works

WITHOUT = ("cpu",)  # devices where starting an operation costs little, and going through memory once more does not
FEWEST = 4  # tensors; below, the stages start no more operations
LARGEST = 1.8e19  # adam_mini.LARGEST
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
    for (_, device), entries in together.items():
        if len(entries) < FEWEST:
            rest += entries
        else:
            _step(optimizer, entries, device)
    return rest


def _fits(entry: tuple) -> bool:
    _, p, g, state, h, _lay = entry
    tensors = (p, g, state["exp_avg"], state["exp_avg_sq"])
    return (
        p.device.type not in WITHOUT
        and h["reduce"] == "mean"
        and state["exp_avg_sq"].numel() <= OWN_SCALARS
        and all(t.dtype == torch.float32 and t.device == p.device and t.is_contiguous() for t in tensors)
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
    statistic.clamp_(max=LARGEST).square_()
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
    found = optimizer.plans.get(device)
    if found is None or found[0] != layouts:
        numbers = torch.tensor([float(work.size) for work in pieces]).repeat_interleave(torch.tensor(counts))
        numbers = numbers.view(1, -1, 1) if device.type == "cpu" else numbers.reciprocal().view(1, -1, 1)
        found = optimizer.plans[device] = (layouts, numbers.to(device))
    return found[1]
