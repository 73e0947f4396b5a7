"""LAMB (You et al., arXiv 1904.00962): Adam's direction, scaled per tensor to the norm of its weights.

Reference: the published algorithm with bias correction, as in torch_optimizer / pytorch_optimizer. The trust ratio is 1
where a norm is zero.
"""

from typing import Unpack

import torch

from lowmem.optim.adamw import adam_scalars
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, Work, add_square
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def norms(w: Work, totals: list) -> list[torch.Tensor]:
    """Moments and direction m / (sqrt(v) + eps) + wd * w, kept; (sum w^2, sum direction^2) for the trust ratio."""
    h, m, v = w.h, w.s["exp_avg"], w.s["exp_avg_sq"]
    m.lerp_(w.g, h["gain1"])
    v.mul_(h["beta2"])
    add_square(v, w.g, h["gain2"])
    direction = v.sqrt().mul_(h["bias2_rsqrt"]).add_(h["eps"])
    direction = torch.div(m, direction, out=direction).mul_(h["bias1_inverse"])
    if h["weight_decay"] != 0:
        direction.add_(w.p * h["weight_decay"])
    w.kept["direction"] = direction
    return [torch.linalg.vector_norm(w.p).square(), torch.linalg.vector_norm(direction).square()]


def update(w: Work, totals: list) -> None:
    """w -= lr * |w| / |direction| * direction."""
    weight, length = (total.sqrt() for total in totals[0])
    both = (weight > 0) & (length > 0)
    ratio = torch.where(both, weight / length.clamp(min=torch.finfo(length.dtype).tiny), torch.ones_like(weight))
    w.p.addcmul_(w.kept.pop("direction"), ratio * -w.h["lr"])


class Lamb(RuleOptimizer):
    """LAMB. State: first and second moment."""

    form = "flat"
    stages = (Stage(norms, sums=lambda ndim: ((), ())), Stage(update))

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, **common: Unpack[Common]):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        return {"exp_avg": torch.zeros_like(p, dtype=dtype), "exp_avg_sq": torch.zeros_like(p, dtype=dtype)}

    @staticmethod
    def scalars(group, step):
        h = adam_scalars(group, step)
        return {
            **h,
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "bias1_inverse": 1 / (1 - h["beta1"] ** step),
        }
