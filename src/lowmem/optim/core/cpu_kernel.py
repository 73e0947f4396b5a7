"""The steps of AdamW, Adam-mini and Lion as plain C loops for fp32 tensors on CPU (kernel_build.py makes them).

Where no C compiler works, or LOWMEM_KERNEL=0, the rules' PyTorch code runs instead: same arithmetic, other order of
rounding (1e-6 relative).
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import os
from collections.abc import Callable

import torch

from lowmem.optim.core.kernel_build import NAMES, VARIANTS, Kernel, Scalars, Segment, load
from lowmem.optim.core.rule import Update

TYPES = (torch.Tensor, torch.nn.Parameter)
THREADS_PAY_FROM = 1 << 18  # elements; below, waking a second thread costs more than it saves


@functools.cache
def library() -> Kernel | None:
    """The built kernel, or None where it cannot be built."""
    return load()


def in_c(optimizer, updates: list[Update]) -> list[Update]:
    """Make every update that the kernel can make; returns the others."""
    kernel = library()
    if kernel is None or (updates and updates[0].hyper["factor"] != 1.0):
        return updates
    cache = optimizer._segments
    if len(cache) > 2 * len(optimizer.shards.layouts) + 16:  # of moments that were replaced
        cache.clear()
    addresses, rest, alive, elements, numbers = [], [], [], 0, {}
    for update in updates:
        _, p, g, state, h, lay = update
        segments = []
        if h.get("reduce", "mean") == "mean" and is_plain(g, lay.held):
            segments = _segments(cache, p, state["exp_avg"], state.get("exp_avg_sq"), lay)
        if not segments:
            rest.append(update)
            continue
        if id(h) not in numbers:
            numbers[id(h)] = Scalars(*[h.get(name, 0.0) for name in NAMES])
        at, scalars = g.data_ptr(), ctypes.addressof(numbers[id(h)])
        for segment, offset, address in segments:
            segment.g, segment.h = at + offset, scalars
            addresses.append(address)
        alive.append(p)
        elements += lay.held
    if alive:
        for update in rest:
            optimizer.check_state(update)
        optimizer.step_kernel = f"C, {VARIANTS[kernel.blocks]}, {VARIANTS[kernel.elements]}"
        table = (ctypes.c_void_p * len(addresses))(*addresses)
        run(functools.partial(kernel.step, kernel.blocks, kernel.elements, table, len(addresses)), elements)
        torch.autograd.graph.increment_version(alive)  # so that autograd notices, as with any in-place operation
    return rest


def _segments(cache: dict, p: torch.Tensor, m: torch.Tensor, v: torch.Tensor | None, lay) -> list:
    """[(segment, byte offset of its gradient, address)] of one parameter, [] where C cannot do it; kept between steps.

    v: None for Lion.

    Addresses say nothing about what lies there, so the tensors are looked at each time: tools cast and resize them.
    """
    if not (is_plain(p, lay.held) and is_plain(m, lay.held)):
        return []
    known = cache.get(m.data_ptr())
    count = known[2] if known is not None and known[1] is lay else seconds(lay)
    if v is not None and not is_plain(v, count):
        return []
    at = (p.data_ptr(), m.data_ptr(), v.data_ptr() if v is not None else None)
    if known is not None and known[0] == at and known[1] is lay:
        return known[3]
    segments = []
    for offset, first, *sizes in lay.strips:
        second = None if v is None else at[2] + 4 * first
        segment = Segment(at[0] + 4 * offset, at[1] + 4 * offset, second, None, None, *sizes)
        segments.append((segment, 4 * offset, ctypes.addressof(segment)))
    cache[at[1]] = (at, lay, count, segments)
    return segments


def seconds(lay) -> int:
    """Numbers in the second moment: one per element, or one per block of the whole parameter."""
    return lay.frame[1] if lay.shared else lay.held


def is_plain(t: torch.Tensor, numel: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether C may process a tensor: this many elements, contiguous, as they are stored, and all of its storage allocated."""
    return (
        type(t) in TYPES
        and t.dtype is dtype
        and t.is_cpu
        and t.numel() == numel > 0
        and t.is_contiguous()
        and not t.is_neg()  # a view whose numbers are read with the other sign
        and t.untyped_storage().nbytes() >= dtype.itemsize * (t.storage_offset() + numel)
    )


def run(call: Callable, elements: int) -> None:
    """call(counter) on every thread at once, which take turns by this counter; ctypes releases the interpreter lock."""
    counter = ctypes.byref(ctypes.c_int64(0))
    threads = torch.get_num_threads() if elements >= THREADS_PAY_FROM else 1
    helpers = [_pool(threads).submit(call, counter) for _ in range(threads - 1)]
    call(counter)
    for helper in helpers:
        helper.result()


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="lowmem-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along
