"""SGD with momentum (Polyak), Nesterov's variant, and decay either coupled (torch) or decoupled (LOMO).

Reference: torch.optim.SGD, which this matches bit for bit in fp32 (the eager `add_` keeps the order of operations).
Different on purpose: `decoupled=True` multiplies weights by 1 - lr * weight_decay instead of adding weight_decay * w to
the gradient, as the official LOMO package does.
"""

from typing import Unpack

import torch

from lowmem.optim.core import gpu_step
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, Update, axpy
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def update(w: TensorView, totals: dict) -> None:
    """w -= lr * d, d = g (+ weight decay) through momentum."""
    h, d = w.hyper, w.grad
    if h["weight_decay"] != 0:
        if h["decoupled"]:
            w.param.mul_(1 - h["lr"] * h["weight_decay"])
        else:
            d = d.add(w.param, alpha=h["weight_decay"])
    if h["momentum"] != 0:
        buffer = w.state["momentum_buffer"]
        if h["first"]:
            buffer.copy_(d)
        else:
            buffer.mul_(h["momentum"]).add_(d, alpha=1 - h["dampening"])
        d = d.add(buffer, alpha=h["momentum"]) if h["nesterov"] else buffer
    axpy(w.param, d, -h["lr"])


IN_FP32 = ("cuda",)  # devices whose `add_` computes 16-bit tensors in fp32


def many_at_once(_optimizer, updates: list[Update]) -> list[Update]:
    """Plain steps w -= lr * g of many whole tensors in one call, with the bits of one `add_` per tensor; returns the others.

    A GPU's `add_` computes 16-bit numbers in fp32 and rounds once, as the stages do; a CPU's rounds lr as well.
    """
    rest, by_rate = [], {}
    for one in updates:
        group, p, g, _, h, _ = one
        exact = p.dtype == g.dtype and (
            p.dtype in (torch.float32, torch.float64) or (p.device.type in IN_FP32 and group["rounding"] == "nearest")
        )
        if h["momentum"] == 0 and h["weight_decay"] == 0 and exact:
            parameters, gradients = by_rate.setdefault((h["lr"] * h["factor"], p.dtype, p.device), ([], []))
            parameters.append(p)
            gradients.append(g)
        else:
            rest.append(one)
    for (rate, _, _), (parameters, gradients) in by_rate.items():
        torch._foreach_add_(parameters, gradients, alpha=-rate)
    return rest


class SGD(RuleOptimizer):
    """Stochastic gradient descent; `momentum`, `dampening`, `nesterov` as in torch.optim.SGD.

    lr: step size. weight_decay: times the weights, added to the gradient; with decoupled=True each step multiplies
    weights by 1 - lr * weight_decay instead, as in the official LOMO.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "flat"
    optional_state = (("momentum_buffer", "momentum"),)
    stages = (Stage(update),)
    ways_on_cpu = (many_at_once,)
    ways_elsewhere = (many_at_once, gpu_step.descent)
    ways_that_skip = (gpu_step.descent,)

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        decoupled=False,
        **common: Unpack[Common],
    ):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov=True: needs momentum > 0 and dampening = 0")
        defaults = dict(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            decoupled=decoupled,
        )
        super().__init__(params, defaults, **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        if group["momentum"] == 0:
            return {}
        return {"momentum_buffer": torch.zeros_like(p, dtype=dtype)}

    @staticmethod
    def late(state):
        state["step"].zero_()  # it tells the buffer's first step, which only sets it

    @staticmethod
    def scalars(group, step):
        keys = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "decoupled")
        return {**{key: group[key] for key in keys}, "first": step == 1}
