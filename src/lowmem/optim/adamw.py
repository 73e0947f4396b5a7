"""AdamW (Loshchilov and Hutter, arXiv 1711.05101). Reference: torch.optim.AdamW.

Different on purpose: on CPU, fp32 tensors go through a compiled C loop where a C compiler exists (cpu_kernel.py), the same
arithmetic in another order of rounding (1e-6 relative). On a GPU tensors whose moments have their own dtype go through
torch's fused kernel, others and stochastic rounding through Triton's (gpu_step.py).
"""

from typing import Unpack

import torch

from lowmem.optim.core import cpu_kernel, eight_bit_cpu, gpu_step
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule import Stage, TensorView, Update, adam_scalars, add_square, axpy, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer

HALVES = (torch.bfloat16, torch.float16)


def update(w: TensorView, totals: dict) -> None:
    """m, v, then w -= lr * (m / bias1) / (sqrt(v / bias2) + eps), with decoupled decay before."""
    h, m, v = w.hyper, w.state["exp_avg"], w.state["exp_avg_sq"]
    shrink(w.param, h["decay_factor"])
    m.lerp_(w.grad, h["one_minus_beta1"])
    v.mul_(h["beta2"])
    add_square(v, w.grad, h["one_minus_beta2"])
    step = v.sqrt().mul_(h["inv_sqrt_bias_correction2"]).add_(h["eps"]).reciprocal_().mul_(m)
    axpy(w.param, step, -h["step_size"])


ON = ("cuda",)  # devices where many tensors go through one kernel


def in_one_kernel(optimizer, updates: list[Update]) -> list[Update]:
    """Step the tensors that lie on such a device and are of one dtype with torch's fused AdamW; returns the others.

    It reads p, g, m, v and writes p, m, v once, where update() above takes 25 passes. It computes in fp32 and rounds to
    nearest, as the stages do.
    """
    rest, together = [], {}
    for one in updates:
        group, p, g, state, h, _ = one
        tensors = (p, g, state["exp_avg"], state["exp_avg_sq"])
        plain = p.dtype == torch.float32 or (p.dtype in HALVES and group["rounding"] == "nearest")
        alike = all(t.dtype == p.dtype and t.device == p.device for t in tensors)
        if plain and alike and p.device.type in ON and h["factor"] == 1.0:
            together.setdefault((id(h), p.device, p.dtype), (h, state["step"], []))[2].append(tensors)
        else:
            rest.append(one)
    for (_, where, _), (h, step, tensors) in together.items():
        p, g, m, v = map(list, zip(*tensors))
        settings = {key: h[key] for key in ("lr", "beta1", "beta2", "eps", "weight_decay")}
        if optimizer.overflow is not None:
            settings["grad_scale"], settings["found_inf"], _ = optimizer.overflow.on(where)
        count = torch.full((), float(step), device=where)  # one for all: the kernel only reads it
        torch._fused_adamw_(p, g, m, v, [], [count] * len(p), amsgrad=False, maximize=False, **settings)
    return rest


class AdamW(RuleOptimizer):
    """Adam with decoupled weight decay. State: first and second moment, two tensors like the parameter.

    lr: step size. betas: decay rates of the moving averages of gradients and of squared gradients. eps: added
    to the root of the second moment. weight_decay: each step multiplies weights by 1 - lr * weight_decay.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "flat"
    in_codes = True
    stages = (Stage(update),)
    ways_of_codes = (eight_bit_cpu.in_c,)
    ways_on_cpu = (cpu_kernel.in_c,)
    ways_elsewhere = ways_that_skip = (in_one_kernel, gpu_step.adam)

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, **common: Unpack[Common]):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        second = torch.promote_types(p.dtype, torch.float32) if dtype == torch.int8 else dtype
        return {"exp_avg": torch.zeros_like(p, dtype=dtype), "exp_avg_sq": torch.zeros_like(p, dtype=second)}

    scalars = staticmethod(adam_scalars)
