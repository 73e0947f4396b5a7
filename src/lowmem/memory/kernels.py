"""GPU kernels as the accountant needs them: what they keep for backward and what they allocate, without what they do.

On a machine without a GPU PyTorch would trace its CPU kernels, which keep other tensors. Two differ enough to matter:

attention  FlashAttention-2 (Dao, arXiv 2307.08691) keeps q, k, v, the output and one fp32 number per query; its
           backward holds an fp32 sum for dq, and dk and dv per query head. "eager" keeps the probabilities instead.
RMSNorm    the fused kernel keeps its input and one fp32 number per row; the composite one keeps fp32 copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowmem import attention

ATTENTION = ("fused", "eager")


class _Attention(torch.autograd.Function):
    """q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D), of no values."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        log_sum = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, log_sum = ctx.saved_tensors
        sums = q.new_empty(q.shape, dtype=torch.float32)
        delta = torch.empty_like(log_sum)
        dq = torch.empty_like(q)
        if k.shape[1] == q.shape[1]:
            return dq, torch.empty_like(k), torch.empty_like(v)
        wide = [x.new_empty(x.shape[0], q.shape[1], *x.shape[2:]) for x in (k, v)]  # one per query head, then summed
        found = dq, torch.empty_like(k), torch.empty_like(v)
        del wide, sums, delta
        return found


class _Norm(torch.autograd.Function):
    """x (..., C), weight (C,) -> (..., C), of no values."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        inverse = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _Kernels(TorchFunctionMode):
    def __init__(self, kind: str, norms: bool):
        super().__init__()
        self.kind, self.norms = kind, norms

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            q, k, v = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value")))
            if self.kind == "eager":
                return attention.explicit(q, k, v)
            return _Attention.apply(q, k, v)
        if self.norms and function in (F.rms_norm, torch.rms_norm):
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if weight is not None:
                return _Norm.apply(args[0], weight)
        return function(*args, **kwargs)


@contextlib.contextmanager
def of(cell) -> Iterator[None]:
    """Inside, attention and RMSNorm allocate as on the cell's device: a GPU's kernels, or what runs here."""
    if cell.device == "gpu":
        with mock.patch.object(attention, "EXPLICIT_UP_TO", 0), _Kernels(cell.attention, norms=True):
            yield
    elif cell.attention == "eager":
        with _Kernels("eager", norms=False):
            yield
    else:
        yield
