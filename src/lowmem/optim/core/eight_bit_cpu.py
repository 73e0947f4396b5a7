"""fp32 weights whose first moment is in 8-bit codes, stepped in C (eight_bit_kernel.c): no fp32 copy of a moment.

Left to the stages are parts of parameters (their scales need other processes), 16-bit weights and stochastic rounding.
"""

from __future__ import annotations

import ctypes
import functools
import itertools

import torch

from lowmem.optim.core import cpu_kernel
from lowmem.optim.core.cpu_kernel import is_plain
from lowmem.optim.core.eight_bit import scale_count
from lowmem.optim.core.kernel_build import NAMES, Scalars
from lowmem.optim.core.layout import Layout
from lowmem.optim.core.rule import Update
from lowmem.optim.core.storage import SCALE

MOMENT = "exp_avg"


class Coded(ctypes.Structure):
    """Mirror of the C struct: one tensor by its addresses, and its blocks for the second moment."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("p", "v", "scale", "rates", "q", "g", "h", "strips")),
        *((name, ctypes.c_int64) for name in ("count", "numel")),
        ("factor", ctypes.c_float),
    ]


def in_c(optimizer, updates: list[Update]) -> list[Update]:
    """Make every update of a moment in codes that the kernel can make; returns the others."""
    coded, rest = [], []
    for update in updates:
        (coded if update.state[MOMENT].dtype == torch.int8 and _fits(update) else rest).append(update)
    kernel = cpu_kernel.library() if coded else None
    if kernel is None:
        return updates
    numbers = {id(u.hyper): Scalars(*[u.hyper.get(name, 0.0) for name in NAMES]) for u in coded}
    shared = [update for update in coded if _by_blocks(update)]
    ends = [0, *itertools.accumulate(update.layout.frame[1] for update in shared)]
    rates = torch.empty(ends[-1], dtype=torch.float32, device="cpu")
    places = {id(update): rates.data_ptr() + 4 * start for update, start in zip(shared, ends)}
    tensors = {id(u): _coded(u, numbers[id(u.hyper)], places.get(id(u))) for u in coded}
    for function, members in ((kernel.measure, shared), (kernel.move_codes, coded)):
        if members:
            addresses = (ctypes.c_void_p * len(members))(*(ctypes.addressof(tensors[id(u)]) for u in members))
            call = functools.partial(function, addresses, len(members))
            cpu_kernel.run(call, sum(update.layout.held for update in members))
    optimizer.step_kernel = "C, 8-bit moments"
    torch.autograd.graph.increment_version([update.param for update in coded])  # as with any in-place operation
    return rest


def _fits(update: Update) -> bool:
    """Whether C may take a tensor: whole, fp32, rounded to nearest, the moving mean of squares or none."""
    group, p, g, state, hyper, lay = update
    numel = lay.blocks.numel
    return (
        lay.held == numel
        and group["rounding"] != "stochastic"
        and hyper.get("reduce", "mean") == "mean"
        and is_plain(p, numel)
        and is_plain(g, numel)
        and is_plain(state[MOMENT], numel, torch.int8)
        and is_plain(state[MOMENT + SCALE], scale_count(numel))
        and ("exp_avg_sq" not in state or is_plain(state["exp_avg_sq"], cpu_kernel.seconds(lay)))
    )


def _by_blocks(update: Update) -> bool:
    """Whether elements share a second moment."""
    return "exp_avg_sq" in update.state and update.layout.shared


def _coded(update: Update, numbers: Scalars, rates: int | None) -> Coded:
    _, p, g, state, hyper, lay = update
    second = state.get("exp_avg_sq")
    at = [p.data_ptr(), None if second is None else second.data_ptr(), state[MOMENT + SCALE].data_ptr(), rates]
    at += [state[MOMENT].data_ptr(), g.data_ptr(), ctypes.addressof(numbers), ctypes.addressof(_strips(lay))]
    return Coded(*at, len(lay.strips), lay.held, hyper["factor"])


@functools.lru_cache(maxsize=1 << 16)
def _strips(lay: Layout) -> ctypes.Array:
    """The strips of a layout, kept as C reads them."""
    numbers = [number for strip in sorted(lay.strips) for number in strip]
    return (ctypes.c_int64 * len(numbers))(*numbers)
