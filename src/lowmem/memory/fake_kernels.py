"""GPU kernels as the accountant needs them: what they keep for backward and what they allocate, without what they do.

On a machine without a GPU PyTorch would trace its CPU kernels, which keep other tensors. These differ enough to matter:

attention  FlashAttention-2 (Dao, arXiv 2307.08691) keeps q, k, v, the output and one fp32 number per query; its
           backward holds an fp32 sum for dq, and dk and dv per query head. Where documents are packed into a sequence it is
           called with their ends (flash_attn_varlen_func): the same tensors, products within documents only.
RMSNorm    the fused kernel keeps its input and one fp32 number per row.

grouped    the products of all experts of a layer (torch.nn.functional.grouped_mm) run in the dtype of the weights, also under
products   autocast, which does not know them: with fp32 weights in fp32, expert after expert into one output. PyTorch's own
           shapes without data are for bf16 only.

optimizers  torch's fused AdamW, PyTorch's list operations for plain descent, and Triton's kernels (optim/core/gpu_step.py)
           read and write each weight, gradient and moment once, in its own dtype and without copies.

"eager" is the code that LLaMA had in Hugging Face transformers in 2023: explicit scores, a softmax in fp32 whose result
is cast back, and a norm of several operations that keeps fp32 copies.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lowmem.memory.tracker import Tracker
from lowmem.models import _attention
from lowmem.optim import SGD, AdamMini, AdamW
from lowmem.optim.core.gpu_step import FLOATS, MOST_STRIPS
from lowmem.optim.core.gpu_tables import LONGEST
from lowmem.optim.core.rule import Update
from lowmem.optim.core.storage import LOW, SCALE

WITH_KERNELS = (AdamMini, AdamW, SGD)  # optimizers that have kernels of their own on a GPU

GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)  # None in a PyTorch without it


class _Attention(torch.autograd.Function):
    """q (B, H, T, D), k (B, K, S, D), v (B, K, S, E) -> (B, H, T, E), of no values. document: keys that a query may see at
    most. E differs from D in latent attention, whose queries and keys have dimensions for positions that values lack."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, document: int | None) -> Tensor:
        batch, heads, length, size = q.shape
        out = torch.empty_like(q)  # laid out as q is, so that joining the heads copies nothing
        if v.shape[3] != size:
            out = q.new_empty((batch, length, heads, v.shape[3])).transpose(1, 2)
        log_sum = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.document = document
        _count("attention", q, k, 2, document)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, _, log_sum = ctx.saved_tensors
        sums = q.new_empty(q.shape, dtype=torch.float32)
        delta = torch.empty_like(log_sum)
        _count("attention", q, k, 5, ctx.document)
        dq = torch.empty_like(q)
        if k.shape[1] == q.shape[1]:
            return dq, torch.empty_like(k), torch.empty_like(v), None
        wide = [x.new_empty(x.shape[0], q.shape[1], *x.shape[2:]) for x in (k, v)]  # one per query head, then summed
        found = dq, torch.empty_like(k), torch.empty_like(v), None
        del wide, sums, delta
        return found


def eager(q: Tensor, k: Tensor, v: Tensor, packed: bool = False) -> Tensor:
    """Causal attention of transformers 4.28 (LlamaAttention): q (B, H, T, D), k and v (B, K, S, D or E) -> (B, H, T, E).

    packed: documents lie otherwise in each sequence, so that each has a mask of its own, (B, 1, T, S)."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    each = (q.shape[0], 1) if packed else ()
    mask = torch.full((*each, q.shape[2], k.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.matmul(q, k.transpose(2, 3)) / q.shape[3] ** 0.5 + mask  # (B, H, T, S)
    return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


class _Norm(torch.autograd.Function):
    """x (..., C), weight (C,) -> (..., C), of no values."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        inverse = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse)
        _count("touched", x, 2)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        _count("touched", x, 3)
        return torch.empty_like(x), torch.empty_like(weight)


def _count(what: str, *arguments) -> None:
    """Tell the tracker what such a kernel would do, since it sees only what is allocated."""
    tracker = _get_current_dispatch_mode()
    if isinstance(tracker, Tracker):
        getattr(tracker.work, what)(tracker.stage, *arguments)


class _Kernels(TorchFunctionMode):
    def __init__(self, kind: str, document: int | None):
        super().__init__()
        self.kind, self.document = kind, document

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            q, k, v = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value")))
            if self.kind == "eager":
                return eager(q, k, v, self.document is not None)
            return _Attention.apply(q, k, v, self.document)
        if self.kind == "fused" and function in (F.rms_norm, torch.rms_norm):
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            if weight is not None:
                return _Norm.apply(args[0], weight)
        return function(*args, **kwargs)


def grouped_product(a: Tensor, b: Tensor, *rest, **named) -> Tensor:
    """A grouped product in another dtype than bf16, by the shapes of one in bf16."""
    return GROUPED(a.bfloat16(), b.bfloat16(), *rest, **named).to(a.dtype)


def on_gpu(tracker: Tracker, optimizer, updates: list[Update]) -> list[Update]:
    """In place of the GPU's way to make updates (of an optimizer WITH_KERNELS): counts what that does; returns the others.

    Each kernel is one launch for all tensors of a step; PyTorch's own, which start anew after 21 M elements, too.
    """
    rest, moved = [], Counter()
    for update in updates:
        _, p, g, state, h, lay = update
        m, v, scale = (state.get(key) for key in ("exp_avg", "exp_avg_sq", "exp_avg" + SCALE))
        dtypes = {x.dtype for x in (p, g, m if scale is None else scale, v) if x is not None}
        other = LOW in state or h.get("momentum", 0) or h.get("reduce", "mean") != "mean"
        if other or not dtypes <= set(FLOATS) or (scale is not None and len(lay.strips) > MOST_STRIPS):
            rest.append(update)
        else:
            moved.update(_moved(isinstance(optimizer, AdamMini), p, g, m, v, lay, scale))
    for size in moved.values():
        tracker.work[tracker.stage, "stream", size] += 1
    return rest


def _moved(
    by_blocks: bool, p: Tensor, g: Tensor, m: Tensor | None, v: Tensor | None, lay, scale: Tensor | None
) -> dict[str, float]:
    """Bytes that each kernel reads and writes for one tensor, see optim/core/triton_kernels.py and triton_codes.py."""
    once = sum(_bytes(x) for x in (p, g, p, m, m, scale, scale) if x is not None)
    scalars = 0 if v is None else 2 * _bytes(v)
    if scale is not None:
        shared = by_blocks and lay.blocks.kind != "coordinate"
        return {"sums": _bytes(g), "settle": scalars, "codes": once} if shared else {"codes": once + scalars}
    if not by_blocks or lay.blocks.kind == "coordinate":
        return {"elements": once + scalars}
    strips = [(outer * blocks * run, outer > 1 or run > LONGEST) for _, _, outer, _, blocks, run in lay.strips]
    twice = sum(size for size, apart in strips if apart) / lay.held  # share of elements in long and strided blocks
    found = {"short": (1 - twice) * once + scalars} if twice < 1 else {}
    return found | ({"sums": twice * _bytes(g), "settle": scalars, "move": twice * once} if twice else {})


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


@contextlib.contextmanager
def of(cell) -> Iterator[None]:
    """Inside, attention and RMSNorm allocate as on the cell's device: a GPU's kernels, or what runs here."""
    if cell.device == "gpu":
        with mock.patch.object(_attention, "EXPLICIT_UP_TO", 0), _Kernels(cell.attention, cell.document):
            yield
    else:
        yield
