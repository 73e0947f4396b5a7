"""Lion (Chen et al., arXiv 2302.06675): the sign of an interpolated momentum.

Reference: the authors' google/automl lion; the PyTorch package lion-pytorch. No deliberate difference; on CPU, fp32
tensors go through a compiled C loop where a C compiler exists (cpu_kernel.py), the same arithmetic in another order of
rounding.
"""

from typing import Unpack

import torch

from lowmem.optim.core import cpu_kernel, eight_bit_cpu
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, axpy, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def update(w: TensorView, totals: dict) -> None:
    """w -= lr * sign(beta1 m + (1 - beta1) g); m <- beta2 m + (1 - beta2) g."""
    h, m = w.hyper, w.state["exp_avg"]
    shrink(w.param, h["decay_factor"])
    direction = torch.lerp(w.grad, m, h["beta1"]).sign_()
    axpy(w.param, direction, -h["step_size"])
    m.lerp_(w.grad, h["one_minus_beta2"])


class Lion(RuleOptimizer):
    """Lion. State: one momentum tensor like the parameter.

    lr: size of every step, whose direction is a sign. betas: share of the momentum in that sign, and what is kept of it.
    weight_decay: each step multiplies weights by 1 - lr * weight_decay.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "flat"
    in_codes = True
    stages = (Stage(update),)
    ways_of_codes = (eight_bit_cpu.in_c,)
    ways_on_cpu = (cpu_kernel.in_c,)

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, **common: Unpack[Common]):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay), **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        return {"exp_avg": torch.zeros_like(p, dtype=dtype)}

    @staticmethod
    def scalars(group, step):
        beta1, beta2 = group["betas"]
        return {
            "step_size": group["lr"],
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,  # in double: see rule.adam_scalars
            "decay_factor": 1 - group["lr"] * group["weight_decay"],
        }
