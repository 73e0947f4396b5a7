"""Adam-mini (Zhang et al., arXiv 2406.16793, Algorithm 1): Adam with one second-moment scalar per Hessian block.

Official code: the package adam-mini 1.1.1. Different on purpose:
- Blocks come from modules (lowmem.partition), not from substrings of parameter names; position tables are cut by
  position, where the official GPT-2 script makes one block of the table.
- Decay acts on every parameter unless no_decay says otherwise; the official code never decays names with norm, ln, bias.
- The sum of a block's squared gradients (in C, which sums in double: the mean) stops at 3.2e38, as an infinite v would
  freeze the block for good.
- Block scalars are always fp32; the first moment takes the parameter's dtype, or state_dtype.
- The second moment is updated in one pass over the block, by a C loop on CPU where a C compiler exists (cpu_kernel.py)
  and by Triton on a GPU (gpu_step.py); elsewhere the stages of many tensors run together (flat_blocks.py).
"""

from typing import Unpack

import torch

from lowmem.optim.adamw import adam_scalars
from lowmem.optim.core import cpu_kernel, flat_blocks, gpu_step
from lowmem.optim.core.flat_blocks import LARGEST
from lowmem.optim.core.hyperparameters import Common, one_of
from lowmem.optim.core.rule import Stage, Work, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer

REDUCTIONS = ("mean", "max", "min", "l1", "l2")


def block_statistic(w: Work, totals: list) -> list[torch.Tensor]:
    """One number per block, (1, count, 1), that sums (or max, min) over its parts: of squared gradients."""
    reduce, axes, largest = w.h["reduce"], (0, 2), LARGEST[w.g.dtype]
    if reduce in ("max", "min"):
        size = w.g.abs()
        size = size.amax(axes, keepdim=True) if reduce == "max" else size.amin(axes, keepdim=True)
        return [size.clamp_(max=largest).square_()]
    norm = torch.linalg.vector_norm(w.g.square() if reduce == "l2" else w.g, dim=axes, keepdim=True)
    statistic = norm.clamp_(max=largest).square_()
    return [statistic.div_(w.size) if reduce == "mean" else statistic]


def block_rate(w: Work, totals: list) -> list[torch.Tensor]:
    """v per block from the complete statistic; lr / (sqrt(v) + eps) with both bias corrections."""
    h, v = w.h, w.s["exp_avg_sq"]
    statistic = totals[-1][0]
    if h["reduce"] in ("l1", "l2"):  # sums over parts may be infinite where the parts are not
        statistic = statistic.clamp(max=LARGEST[statistic.dtype] ** 2)
        statistic = statistic.sqrt_() if h["reduce"] == "l2" else statistic
    v.mul_(h["beta2"]).add_(statistic * h["gain2"])
    return [h["step_size"] / (v.sqrt() * h["bias2_rsqrt"] + h["eps"])]


def update(w: Work, totals: list) -> None:
    """m per coordinate, then Adam's step with the block's rate (Algorithm 1; eps outside the root)."""
    h, m = w.h, w.s["exp_avg"]
    shrink(w.p, h["keep"])
    m.lerp_(w.g, h["gain1"])
    w.p.addcmul_(m, totals[0][0], value=-1)


class AdamMini(RuleOptimizer):
    """Adam-mini. Pass the model: AdamMini(model, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1).

    reduce: statistic of the squared gradients of a block: "mean" (the paper), "max", "min", "l1" (sum), "l2". Further
    keywords go to lowmem.partition (scheme, value, embedding, output, biases, neurons, overrides) and to the driver
    (model, no_decay, rounding, state_dtype, nonfinite). State: one tensor like the parameter, one fp32 number per block.
    """

    form = "blocks"
    in_codes = True
    uses_blocks = True
    stages = (Stage(block_statistic, block_rate, lambda ndim: ((1,),), pure=True), Stage(update))

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        *,
        reduce="mean",
        scheme=None,
        value=None,
        embedding=None,
        output=None,
        biases=None,
        neurons=None,
        overrides=None,
        **common: Unpack[Common],
    ):
        one_of("reduce", reduce, REDUCTIONS)
        settings = dict(
            scheme=scheme,
            value=value,
            embedding=embedding,
            output=output,
            biases=biases,
            neurons=neurons,
            overrides=overrides,
        )
        settings = {key: setting for key, setting in settings.items() if setting is not None}
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, reduce=reduce)
        super().__init__(params, defaults, partition_settings=settings, **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        v_dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        if blocks.kind == "coordinate":
            second = torch.zeros_like(p, dtype=v_dtype)
        else:
            second = torch.zeros(blocks.count, dtype=v_dtype, device=p.device)
        return {"exp_avg": torch.zeros_like(p, dtype=dtype), "exp_avg_sq": second}

    @staticmethod
    def small(blocks):
        return () if blocks.kind == "coordinate" else ("exp_avg_sq",)

    @staticmethod
    def reduction(group):
        return group["reduce"] if group["reduce"] in ("max", "min") else "sum"

    @staticmethod
    def scalars(group, step):
        return {**adam_scalars(group, step), "largest": LARGEST[torch.float32] ** 2, "reduce": group["reduce"]}

    def fast(self, ready):
        return flat_blocks.adam_mini(self, gpu_step.adam(self, cpu_kernel.in_c(self, ready)))
