"""LAMB (You et al., arXiv 1904.00962): Adam's direction, scaled per tensor to the norm of its weights.

Reference: the published algorithm with bias correction. The trust ratio is 1 where a norm is zero. Its steps are
not those of pytorch_optimizer, which clamps that norm at 10, adds eps to the direction's, and corrects the first moment alone.
"""

from typing import Unpack

import torch

from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, adam_scalars, add_square, per_tensor
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def norms(w: TensorView, totals: dict) -> list[torch.Tensor]:
    """Moments and direction m / (sqrt(v) + eps) + wd * w, kept; (sum w^2, sum direction^2) for the trust ratio."""
    h, m, v = w.hyper, w.state["exp_avg"], w.state["exp_avg_sq"]
    m.lerp_(w.grad, h["one_minus_beta1"])
    v.mul_(h["beta2"])
    add_square(v, w.grad, h["one_minus_beta2"])
    direction = v.sqrt().mul_(h["inv_sqrt_bias_correction2"]).add_(h["eps"])
    direction = torch.div(m, direction, out=direction).mul_(h["inv_bias_correction1"])
    if h["weight_decay"] != 0:
        direction.add_(w.param * h["weight_decay"])
    w.scratch["direction"] = direction
    return [torch.linalg.vector_norm(w.param).square(), torch.linalg.vector_norm(direction).square()]


def update(w: TensorView, totals: dict) -> None:
    """w -= lr * |w| / |direction| * direction."""
    weight, length = (total.sqrt() for total in totals["norms"])
    both = (weight > 0) & (length > 0)
    ratio = torch.where(both, weight / length.clamp(min=torch.finfo(length.dtype).tiny), torch.ones_like(weight))
    w.param.addcmul_(w.scratch.pop("direction"), ratio * -w.hyper["lr"])


class Lamb(RuleOptimizer):
    """LAMB. State: first and second moment.

    lr: step size relative to each tensor's norm. betas, eps: as in Adam. weight_decay: times the weights, part of the update.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "flat"
    stages = (Stage(norms, sums=(per_tensor, per_tensor)), Stage(update))

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
            "inv_bias_correction1": 1 / (1 - h["beta1"] ** step),
        }
