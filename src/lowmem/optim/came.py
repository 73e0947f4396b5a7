"""CAME (Luo et al., arXiv 2307.02047): Adafactor with momentum, divided by a factored confidence in that momentum.

Official code: the package came-pytorch. No deliberate difference but fp32 moments.
"""

import torch

from lowmem.optim import factored
from lowmem.optim.driver import RuleOptimizer
from lowmem.optim.stages import Work, axpy


def second_moment(w: Work, totals: list) -> list[torch.Tensor]:
    """Row and column sums of g^2 + eps1."""
    return factored.sums(w.g.square().add_(w.h["eps1"]))


def _scaled(w: Work) -> torch.Tensor:
    if "exp_avg_sq" in w.s:
        return w.s["exp_avg_sq"].rsqrt().mul_(w.g)
    row, column = factored.inverse_root(w.s["exp_avg_sq_row"], w.s["exp_avg_sq_col"])
    return (w.g * row).mul_(column)


def update_norm(w: Work, totals: list) -> torch.Tensor:
    """Moments updated; the sum of u^2 for update clipping."""
    keys = ("exp_avg_sq",) if "exp_avg_sq" in w.s else ("exp_avg_sq_row", "exp_avg_sq_col")
    for key, mean in zip(keys, factored.means(w.g, totals[0])):
        w.s[key].lerp_(mean, w.h["gain2"])
    return torch.linalg.vector_norm(_scaled(w)).square()


def instability(w: Work, totals: list) -> list[torch.Tensor] | None:
    """Momentum of the clipped update; row and column sums of (u - m)^2 + eps2 (Algorithm 2, lines 9 to 11)."""
    clip = ((totals[1] / w.p.numel()).sqrt() / w.h["clip_threshold"]).clamp(min=1.0)
    u = _scaled(w).div_(clip)
    w.s["exp_avg"].lerp_(u, w.h["gain1"])
    if not factored.is_factored(w.p):
        return None
    return factored.sums(u.sub_(w.s["exp_avg"]).square_().add_(w.h["eps2"]))


def update(w: Work, totals: list) -> None:
    """w -= lr * m / sqrt(confidence)."""
    h, step = w.h, w.s["exp_avg"]
    if totals[2] is not None:
        for key, mean in zip(("exp_avg_res_row", "exp_avg_res_col"), factored.means(w.g, totals[2])):
            w.s[key].lerp_(mean, h["gain3"])
        row, column = factored.inverse_root(w.s["exp_avg_res_row"], w.s["exp_avg_res_col"])
        step = (step * row).mul_(column)
    w.p.mul_(h["keep"])
    axpy(w.p, step, -h["lr"])


class CAME(RuleOptimizer):
    """CAME. betas: momentum, second moment, instability. eps: added to g^2 and to the instability."""

    form = "shaped"
    beta_count = 3
    stages = (second_moment, update_norm, instability, update)

    def __init__(
        self,
        params,
        lr=2e-4,
        betas=(0.9, 0.999, 0.9999),
        eps=(1e-30, 1e-16),
        clip_threshold=1.0,
        weight_decay=0.0,
        **common,
    ):
        defaults = dict(
            lr=lr, betas=tuple(betas), eps=tuple(eps), clip_threshold=clip_threshold, weight_decay=weight_decay
        )
        super().__init__(params, defaults, **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        state = {"exp_avg": torch.zeros_like(p, dtype=dtype)}
        state.update(factored.init(p, dtype, "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"))
        if factored.is_factored(p):
            state.update(factored.init(p, dtype, "exp_avg_res_row", "exp_avg_res_col", ""))
        return state

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
