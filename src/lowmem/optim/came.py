"""CAME (Luo et al., arXiv 2307.02047): Adafactor with momentum, divided by a factored confidence in that momentum.

Official code: the package came-pytorch. No deliberate difference but fp32 moments.
"""

import math
from typing import Unpack

import torch

from lowmem.optim.adafactor import moments, scaled, squares
from lowmem.optim.core import factored
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, Work, axpy, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def update_norm(w: Work, totals: list) -> list[torch.Tensor]:
    """The sum of u^2 for update clipping."""
    return [torch.linalg.vector_norm(scaled(w, totals)).square()]


def instability(w: Work, totals: list) -> list[torch.Tensor] | None:
    """Momentum of the clipped update; row and column sums of (u - m)^2 + eps2 (Algorithm 2, lines 9 to 11)."""
    clip = ((totals[1][0] / math.prod(w.frame)).sqrt() / w.h["clip_threshold"]).clamp(min=1.0)
    u = scaled(w, totals).div_(clip)
    w.s["exp_avg"].lerp_(u, w.h["gain1"])
    if not factored.is_factored(w.frame):
        return None
    return factored.sums(u.sub_(w.s["exp_avg"]).square_().add_(w.h["eps2"]))


def confidence(w: Work, totals: list) -> list[torch.Tensor] | None:
    return factored.moments(w, "exp_avg_res", totals[-1], w.h["gain3"]) if totals[-1] else None


def update(w: Work, totals: list) -> None:
    """w -= lr * m / sqrt(confidence)."""
    h, step = w.h, w.s["exp_avg"]
    if totals[2]:
        row, column = totals[2]
        step = (step * row).mul_(column)
    shrink(w.p, h["keep"])
    axpy(w.p, step, -h["lr"])


class CAME(RuleOptimizer):
    """CAME. betas: momentum, second moment, instability. eps: added to g^2 and to the instability."""

    form = "shaped"
    beta_count, eps_count = 3, 2
    stages = (
        Stage(squares, moments, factored.axes),
        Stage(update_norm, sums=lambda ndim: ((),)),
        Stage(instability, confidence, factored.axes),
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
    def small(blocks):
        return factored.names(blocks.shape, "exp_avg_sq", "exp_avg_res")

    @staticmethod
    def scalars(group, step):
        beta1, beta2, beta3 = group["betas"]
        return {
            "lr": group["lr"],
            "gain1": 1 - beta1,  # in double: see adamw.adam_scalars
            "gain2": 1 - beta2,
            "gain3": 1 - beta3,
            "eps1": group["eps"][0],
            "eps2": group["eps"][1],
            "clip_threshold": group["clip_threshold"],
            "keep": 1 - group["lr"] * group["weight_decay"],
        }
