"""CAME (Luo et al., arXiv 2307.02047): Adafactor with momentum, divided by a factored confidence in that momentum.

Official code: the package came-pytorch. No deliberate difference but fp32 moments.
"""

import math
from typing import Unpack

import torch

from lowmem.optim.adafactor import scaled, second_moment, squares
from lowmem.optim.core import factored
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, axpy, per_column, per_row, per_tensor, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def update_norm(w: TensorView, totals: dict) -> list[torch.Tensor]:
    """The sum of u^2 for update clipping."""
    return [torch.linalg.vector_norm(scaled(w, totals)).square()]


def instability(w: TensorView, totals: dict) -> list[torch.Tensor] | None:
    """Momentum of the clipped update; row and column sums of (u - m)^2 + eps2 (Algorithm 2, lines 9 to 11)."""
    clip = ((totals["update_norm"][0] / math.prod(w.frame)).sqrt() / w.hyper["clip_threshold"]).clamp(min=1.0)
    u = scaled(w, totals).div_(clip)
    w.state["exp_avg"].lerp_(u, w.hyper["one_minus_beta1"])
    if not factored.is_factored(w.frame):
        return None
    return factored.sums(u.sub_(w.state["exp_avg"]).square_().add_(w.hyper["eps2"]))


def confidence(w: TensorView, sums: list | None) -> list[torch.Tensor] | None:
    """Running means of the instability; factors whose product is its inverse root."""
    return factored.moments(w, "exp_avg_res", sums, w.hyper["one_minus_beta3"]) if sums else None


def update(w: TensorView, totals: dict) -> None:
    """w -= lr * m / sqrt(confidence)."""
    h, step = w.hyper, w.state["exp_avg"]
    if totals["confidence"]:
        row, column = totals["confidence"]
        step = (step * row).mul_(column)
    shrink(w.param, h["decay_factor"])
    axpy(w.param, step, -h["lr"])


class CAME(RuleOptimizer):
    """CAME. betas: momentum, second moment, instability. eps: added to g^2 and to the instability.

    lr: step size. clip_threshold: maximum root mean square of an update. weight_decay: each step multiplies
    weights by 1 - lr * weight_decay.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "shaped"
    beta_count, eps_count = 3, 2
    stages = (
        Stage(squares, second_moment, (per_row, per_column)),
        Stage(update_norm, sums=(per_tensor,)),
        Stage(instability, confidence, (per_row, per_column)),
        Stage(update),
    )

    def __init__(
        self,
        params,
        lr=2e-4,
        betas=(0.9, 0.999, 0.9999),
        eps=(1e-30, 1e-16),
        clip_threshold=1.0,
        weight_decay=0.0,
        **common: Unpack[Common],
    ):
        defaults = dict(lr=lr, betas=betas, eps=eps, clip_threshold=clip_threshold, weight_decay=weight_decay)
        super().__init__(params, defaults, **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        state = {"exp_avg": torch.zeros_like(p, dtype=dtype)}
        state.update(factored.init(p, blocks.shape, dtype, "exp_avg_sq"))
        if factored.is_factored(blocks.shape):
            state.update(factored.init(p, blocks.shape, dtype, "exp_avg_res"))
        return state

    @staticmethod
    def replicated(blocks):
        return factored.names(blocks.shape, "exp_avg_sq", "exp_avg_res")

    @staticmethod
    def scalars(group, step):
        beta1, beta2, beta3 = group["betas"]
        return {
            "lr": group["lr"],
            "one_minus_beta1": 1 - beta1,  # in double: see rule.adam_scalars
            "one_minus_beta2": 1 - beta2,
            "one_minus_beta3": 1 - beta3,
            "eps1": group["eps"][0],
            "eps2": group["eps"][1],
            "clip_threshold": group["clip_threshold"],
            "decay_factor": 1 - group["lr"] * group["weight_decay"],
        }
