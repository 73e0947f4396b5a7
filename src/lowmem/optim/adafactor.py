"""Adafactor (Shazeer and Stern, arXiv 1804.04235), and its vision variant (Zhai et al., arXiv 2106.04560).

References: the authors' tensor2tensor code as carried by Hugging Face transformers (original), torch.optim.Adafactor
(relative_step="capped"). The Adam-mini paper's baselines run with relative_step=True, which makes lr and its schedule
inert; that flag is explicit here, and off by default. Different on purpose: moments are always fp32. torch keeps row variances
above finfo(dtype).eps; eps=(1e-15, 1e-3) is the setting at which both agree.
"""

import math
from typing import Unpack

import torch

from lowmem.optim.core import factored
from lowmem.optim.core.hyperparameters import Common, one_of
from lowmem.optim.core.rule import Stage, TensorView, axpy, per_column, per_row, per_tensor
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def squares(w: TensorView, totals: dict) -> list[torch.Tensor] | None:
    """Row and column sums of g^2 + eps1 (Algorithm 4); a tensor that is not factored updates its moment here."""
    square = w.grad.square().add_(w.hyper["eps1"])
    if factored.is_factored(w.frame):
        return factored.sums(square)
    w.state["exp_avg_sq"].lerp_(square, w.hyper["one_minus_beta2"])
    return None


def second_moment(w: TensorView, sums: list | None) -> list[torch.Tensor] | None:
    """Running means of rows and columns; factors whose product is v^-1/2."""
    return factored.moments(w, "exp_avg_sq", sums, w.hyper["one_minus_beta2"]) if sums else None


def scaled(w: TensorView, totals: dict) -> torch.Tensor:
    """g / sqrt(v)."""
    if not totals["second_moment"]:
        return w.state["exp_avg_sq"].rsqrt().mul_(w.grad)
    row, column = totals["second_moment"]
    return (w.grad * row).mul_(column)


def norms(w: TensorView, totals: dict) -> list[torch.Tensor]:
    """Sum u^2 and sum w^2 for update clipping and parameter scaling (Algorithms 5 and 6)."""
    return [torch.linalg.vector_norm(scaled(w, totals)).square(), torch.linalg.vector_norm(w.param).square()]


def update(w: TensorView, totals: dict) -> None:
    """w -= alpha * u / max(1, RMS(u) / d), alpha = rate * max(eps2, RMS(w)) where parameter scaling is on."""
    h, numel = w.hyper, math.prod(w.frame)
    u_rms, w_rms = ((total / numel).sqrt() for total in totals["norms"])
    rate = w_rms.clamp(min=h["eps2"]) * h["rate"] if h["scale_parameter"] else torch.full_like(w_rms, h["rate"])
    step = scaled(w, totals).mul_(rate / (u_rms / h["clip_threshold"]).clamp(min=1.0))
    if h["beta1"]:
        w.state["exp_avg"].lerp_(step, 1 - h["beta1"])
        step = w.state["exp_avg"]
    if h["weight_decay"] != 0:
        decay = h["decay_rate"] if h["decay_rate"] is not None else rate
        w.param.mul_(1 - decay * h["weight_decay"])
    axpy(w.param, step, -1.0)


class Adafactor(RuleOptimizer):
    """Adafactor.

    variant "original": beta2_t = 1 - t^decay_rate, update clipping, parameter scaling; "zhai": the same with beta2_t
    capped at 0.999 (beta2_cap), momentum 0.9 and no parameter scaling. Flags given override the variant's. relative_step: False
    (lr is the rate), True (rate min(1e-2 or, with warmup_init, 1e-6 t, t^-1/2): lr is ignored), "capped" (min(lr,
    t^-1/2), as torch does). decay_by_lr: decay weights by lr * weight_decay (torch) instead of by the scaled rate.
    eps: added to g^2, and the least size of a tensor that scales its rate (scale_parameter). clip_threshold: maximum root mean
    square of an update. State: one fp32 number per row and per column, plus a momentum tensor where beta1 is set.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "shaped"
    eps_count = 2
    optional_state = (("exp_avg", "beta1"),)
    stages = (
        Stage(squares, second_moment, (per_row, per_column)),
        Stage(norms, sums=(per_tensor, per_tensor)),
        Stage(update),
    )

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
        **common: Unpack[Common],
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
            eps=eps,
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
        state = factored.init(p, blocks.shape, dtype, "exp_avg_sq")
        if group["beta1"]:
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
        return state

    @staticmethod
    def replicated(blocks):
        return factored.names(blocks.shape, "exp_avg_sq")

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
            "one_minus_beta2": max(step ** group["decay_rate"], 1 - group["beta2_cap"]),
            "eps1": group["eps"][0],
            "eps2": group["eps"][1],
            "clip_threshold": group["clip_threshold"],
            "scale_parameter": group["scale_parameter"],
            "weight_decay": group["weight_decay"],
            "decay_rate": group["lr"] if group["decay_by_lr"] else None,
        }
