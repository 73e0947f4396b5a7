"""What a gradient goes through inside backward before the rule sees it: unscaling, clamping, clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowmem.optim.core.sharding import reduce_all


def check_clipping(loss_scale, **limits) -> None:
    """ValueError for a limit or loss scale that is not above 0."""
    for key, value in limits.items():
        if value is not None and not value > 0:
            raise ValueError(f"{key}={value!r}: more than 0, or None for no clipping")
    if loss_scale not in (None, "dynamic") and not (isinstance(loss_scale, (int, float)) and loss_scale > 0):
        raise ValueError(f"loss_scale={loss_scale!r}: None, a number above 0, or 'dynamic'")


def norm_of(g: Tensor) -> Tensor:
    """The 2-norm in fp32 or wider; on a CPU in double where squares of finite numbers are infinite in fp32.

    On other devices the check would wait for the device at each gradient.
    """
    norm = torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
    overflown = norm.device.type == "cpu" and norm.dtype == torch.float32 and not math.isfinite(norm)
    return torch.linalg.vector_norm(g, dtype=torch.float64) if overflown else norm


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm over all gradients, in double where fp32 does not hold the squares."""
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if norm.isfinite():
        return norm
    norm = torch.nn.utils.get_total_norm([g.double() for g in gradients])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def prepared(fused, current, p: nn.Parameter, g: Tensor) -> tuple[Tensor, float]:
    """Unscale, clamp, clip, in the official order; 16-bit gradients as an fp32 copy, others in place.

    current: the pass (backward_pass.Pass), which knows scale and coefficient.

    A factor that nothing follows is left to the rule, which saves a GPU a pass over the gradient.
    """
    factor = current.coefficient
    plain = fused.clip_value is None and fused.grouped_norm is None
    if plain and (current.scale == 1.0 or g.device.type != "cpu"):
        return g, factor / current.scale
    g = g.float() if g.dtype in (torch.float16, torch.bfloat16) else g
    if current.scale != 1.0:
        g.div_(current.scale)
    if fused.clip_value is not None:
        g.clamp_(-fused.clip_value, fused.clip_value)
    if fused.grouped_norm is not None:
        shard = fused.inner.shard(p)
        square = norm_of(g).square()
        if shard is not None:
            square = square.to(torch.promote_types(g.dtype, torch.float32))  # on all ranks alike
            reduce_all([(shard, "sum", square)])
        g.mul_((fused.grouped_norm / (square.sqrt() + 1e-6)).clamp_(max=1.0))
    return g, factor
