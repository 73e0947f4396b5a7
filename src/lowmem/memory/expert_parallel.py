"""Experts divided over GPUs: each GPU of a group holds some of them whole, and tokens travel to their experts and back.

As in GShard (Lepikhin et al., arXiv 2006.16668) and, with fully_shard around it, in torchtitan: the experts of a layer are
divided over a group of GPUs, what a GPU holds of them is split over the groups, and every other weight over all GPUs. A GPU
sends each token once to each of its experts and gets as many in turn: routing is taken to be even, so the busiest GPU of a
real step holds more. Each exchange needs what is sent and what is received, there and back, forward and backward.
"""

from __future__ import annotations

import functools
import inspect

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lowmem.errors import Misuse
from lowmem.memory.tracker import Tracker

ROUTES = {
    ("top_k_index", "top_k_weights"),
    ("router_indices", "routing_weights"),
}  # arguments of experts in transformers


def divide(model: nn.Module, ranks: int) -> list[nn.Module]:
    """Leave each module of experts the share of one of `ranks` GPUs, in place, and let its tokens travel; the modules.

    Raises Misuse for a model without experts of a known form, or whose number the ranks do not divide.
    """
    found = [module for module in model.modules() if holds_experts(module)]
    if not found:
        raise Misuse(
            "expert-parallel: no experts of a known form in this model (one tensor for all experts of a layer)"
        )
    for module in found:
        count = len(next(p for p in module.parameters(recurse=False) if p.ndim == 3))
        if count % ranks:
            fits = max(n for n in range(1, ranks + 1) if count % n == 0)
            raise Misuse(f"expert-parallel {ranks} does not divide {count} experts; the nearest that does: {fits}")
        for name, p in list(module.named_parameters(recurse=False)):
            if p.shape[0] == count:
                setattr(module, name, nn.Parameter(p.new_empty((count // ranks, *p.shape[1:]))))
        for name, value in list(vars(module).items()):
            if name in ("num_experts", "n_experts", "num_local_experts") and value == count:
                setattr(module, name, count // ranks)
        module.forward = functools.partial(travelling, module.forward)
    return found


def holds_experts(module: nn.Module) -> bool:
    """Whether a module has all experts of a layer in one tensor each, and is told which tokens go to which."""
    names = tuple(inspect.signature(type(module).forward).parameters)[2:4]
    return names in ROUTES and any(p.ndim == 3 for p in module.parameters(recurse=False))


def travelling(forward, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What a module of all experts gives: hidden (..., C), experts of each token (T, k) and their weights -> (..., C)."""
    width = hidden.shape[-1]
    flat, each = hidden.reshape(-1, width), index.shape[-1]  # (T, C)
    received = _Exchange.apply(flat.repeat_interleave(each, 0))  # (T k, C)
    here = index.new_zeros((received.shape[0], 1))
    made = forward(received, here, received.new_ones((received.shape[0], 1)))
    back = _Exchange.apply(made).view(flat.shape[0], each, width)
    weights = weights.reshape(-1, weights.shape[-1])[:, :each]
    summed = (back * weights.unsqueeze(-1).to(back.dtype)).sum(1)
    return summed if summed.shape == hidden.shape else summed.view(hidden.shape)  # fully_shard warns of a view


class _Exchange(torch.autograd.Function):
    """All tokens of a GPU sent to others and as many received, of no values; backward sends their gradients home."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return exchanged(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return exchanged(grad)


def exchanged(x: Tensor) -> Tensor:
    """Room for what is received, and the bytes that cross the link."""
    tracker = _get_current_dispatch_mode()
    if isinstance(tracker, Tracker):
        tracker.work[tracker.stage, "link", x.numel() * x.element_size(), "expert"] += 1
    return torch.empty_like(x)
