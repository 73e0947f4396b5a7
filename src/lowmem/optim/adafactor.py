"""Adafactor (Shazeer and Stern, arXiv 1804.04235), and its vision variant (Zhai et al., arXiv 2106.04560).

References: the authors' tensor2tensor code as carried by Hugging Face transformers (original), torch.optim.Adafactor
(relative_step="capped"). The Adam-mini paper's baselines run with relative_step=True, which makes lr and its schedule
inert; that flag is explicit here, and off by default. Different on purpose: moments are always fp32.
"""

import math

import torch

from lowmem.optim import factored
from lowmem.optim.driver import RuleOptimizer
from lowmem.optim.settings import one_of
from lowmem.optim.stages import Work, axpy


def second_moment(w: Work, totals: list) -> list[torch.Tensor]:
    """Row and column sums of g^2 + eps1 (Algorithm 4)."""
    return factored.sums(w.g.square().add_(w.h["eps1"]))


def _scaled(w: Work) -> torch.Tensor:
    """g / sqrt(v) with the moments as they stand."""
    if "exp_avg_sq" in w.s:
        return w.s["exp_avg_sq"].rsqrt().mul_(w.g)
    row, column = factored.inverse_root(w.s["exp_avg_sq_row"], w.s["exp_avg_sq_col"])
    return (w.g * row).mul_(column)


def norms(w: Work, totals: list) -> torch.Tensor:
    """Moments updated; (sum u^2, sum w^2) for update clipping and parameter scaling (Algorithms 5 and 6)."""
    h = w.h
    for key, mean in zip((k for k in w.s if k != "exp_avg"), factored.means(w.g, totals[0])):
        w.s[key].lerp_(mean, h["gain2"])
    return torch.stack([torch.linalg.vector_norm(_scaled(w)).square(), torch.linalg.vector_norm(w.p).square()])


def update(w: Work, totals: list) -> None:
    """w -= alpha * u / max(1, RMS(u) / d), alpha = rate * max(eps2, RMS(w)) where parameter scaling is on."""
    h = w.h
    u_rms, w_rms = (totals[1] / w.p.numel()).sqrt().unbind()
    rate = w_rms.clamp(min=h["eps2"]) * h["rate"] if h["scale_parameter"] else torch.full_like(w_rms, h["rate"])
    step = _scaled(w).mul_(rate / (u_rms / h["clip_threshold"]).clamp(min=1.0))
    if h["beta1"] is not None:
        w.s["exp_avg"].lerp_(step, 1 - h["beta1"])
        step = w.s["exp_avg"]
    if h["weight_decay"] != 0:
        decay = h["decay_rate"] if h["decay_rate"] is not None else rate
        w.p.mul_(1 - decay * h["weight_decay"])
    axpy(w.p, step, -1.0)


class Adafactor(RuleOptimizer):
    """Adafactor.

    variant "original": beta2_t = 1 - t^decay_rate, update clipping, parameter scaling; "zhai": the same with beta2_t
    capped at 0.999, momentum 0.9 and no parameter scaling. Flags given override the variant's. relative_step: False
    (lr is the rate), True (rate min(1e-2 or, with warmup_init, 1e-6 t, t^-1/2): lr is ignored), "capped" (min(lr,
    t^-1/2), as torch does). decay_by_lr: decay weights by lr * weight_decay (torch) instead of by the scaled rate.
    State: one fp32 number per row and per column, plus a momentum tensor where beta1 is set.
    """

    form = "shaped"
    stages = (second_moment, norms, update)

    def __init__(
        self,
        params,
        lr=1e-2,
        *,
        variant="original",
        beta1=None,
        decay_rate=-0.8,
        beta2_cap=None,
        eps=(1e-30, 1e-3),
        clip_threshold=1.0,
        weight_decay=0.0,
        scale_parameter=None,
        relative_step=False,
        warmup_init=False,
        decay_by_lr=False,
        **common,
    ):
        one_of("variant", variant, ("original", "zhai"))
        one_of("relative_step", relative_step, (False, True, "capped"))
        zhai = variant == "zhai"
        beta1 = 0.9 if zhai and beta1 is None else beta1
        beta2_cap = (0.999 if zhai else 1.0) if beta2_cap is None else beta2_cap
        scale_parameter = (not zhai) if scale_parameter is None else scale_parameter
        if warmup_init and relative_step is not True:
            raise ValueError("warmup_init=True: needs relative_step=True")
        defaults = dict(
            lr=lr,
            beta1=beta1,
            decay_rate=decay_rate,
            beta2_cap=beta2_cap,
            eps=tuple(eps),
            clip_threshold=clip_threshold,
            weight_decay=weight_decay,
            scale_parameter=scale_parameter,
            relative_step=relative_step,
            warmup_init=warmup_init,
            decay_by_lr=decay_by_lr,
        )
        super().__init__(params, defaults, **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        state = factored.init(p, dtype, "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")
        if group["beta1"] is not None:
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
        return state

    @staticmethod
    def scalars(group, step):
        inverse_root = 1 / math.sqrt(step) if not isinstance(step, torch.Tensor) else step.rsqrt()
        rate = group["lr"]
        if group["relative_step"] is True:
            rate = min(1e-6 * step if group["warmup_init"] else 1e-2, inverse_root)
        elif group["relative_step"] == "capped":
            rate = min(rate, inverse_root)
        return {
            "rate": rate,
            "beta1": group["beta1"],
            "gain2": max(step ** group["decay_rate"], 1 - group["beta2_cap"]),
            "eps1": group["eps"][0],
            "eps2": group["eps"][1],
            "clip_threshold": group["clip_threshold"],
            "scale_parameter": group["scale_parameter"],
            "weight_decay": group["weight_decay"],
            "decay_rate": group["lr"] if group["decay_by_lr"] else None,
        }
