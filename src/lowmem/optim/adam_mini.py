"""Adam-mini (Zhang et al., arXiv 2406.16793, Algorithm 1): Adam with one second-moment scalar per Hessian block.

In step t, for every parameter w with gradient g, and every block b of its coordinates:

    w    <-  w - lr * weight_decay * w                                      update
    m    <-  beta1 * m + (1 - beta1) * g                                    update
    v_b  <-  beta2 * v_b + (1 - beta2) * mean of g^2 over the block         block_statistic, block_rate
    w_b  <-  w_b - lr * m_b / (1 - beta1^t) / (sqrt(v_b / (1 - beta2^t)) + eps)         update

The functions below say this once more in PyTorch, for all blocks of a tensor at a time: w.param is a piece (outer, blocks,
run), v one number per block. That is the rule that runs wherever no faster way takes a tensor, and to which all faster ways
are compared (rule_optimizer.py lists them). A copy in loops over floats: tests/support/twins.py.

Official code: the package adam-mini 1.1.1. Different on purpose:
- Blocks come from modules (lowmem.partition), not from substrings of parameter names; position tables are cut by
  position, where the official GPT-2 script makes one block of the table.
- Decay acts on every parameter unless no_decay says otherwise; the official code never decays names with norm, ln, bias.
- The sum of a block's squared gradients stops at 3.2e38, as an infinite v would freeze the block for good; and in m a
  finite gradient counts as at most the root of that, 1.8e19, as it would else outweigh v. (Not on a GPU without Triton,
  where looking would cost a third of the step.)
- Block scalars are always fp32; the first moment takes the parameter's dtype, or state_dtype.
"""

from typing import Unpack

import torch

from lowmem.optim.core import cpu_kernel, eight_bit_cpu, flat_blocks, gpu_step
from lowmem.optim.core.flat_blocks import LARGEST
from lowmem.optim.core.hyperparameters import Common, one_of
from lowmem.optim.core.rule import Stage, TensorView, adam_scalars, per_block, shrink
from lowmem.optim.core.rule_optimizer import RuleOptimizer

LARGE = 1e18  # gradients, or second moments, from which on it pays to look for gradients whose square is infinite
REDUCTIONS = ("mean", "max", "min", "l1", "l2")


def block_statistic(w: TensorView, _totals: dict) -> list[torch.Tensor]:
    """One number per block, (1, count, 1), that sums (or max, min) over its parts: of squared gradients."""
    reduce, axes, largest = w.hyper["reduce"], (0, 2), LARGEST[w.grad.dtype]
    if reduce in ("max", "min"):
        size = w.grad.abs()
        size = size.amax(axes, keepdim=True) if reduce == "max" else size.amin(axes, keepdim=True)
        return [size.clamp_(max=largest).square_()]
    norm = torch.linalg.vector_norm(w.grad.square() if reduce == "l2" else w.grad, dim=axes, keepdim=True)
    statistic = norm.clamp_(max=largest).square_()
    return [statistic.div_(w.size) if reduce == "mean" else statistic]


def block_rate(w: TensorView, sums: list[torch.Tensor]) -> list[torch.Tensor]:
    """v per block from the complete statistic; lr / (sqrt(v) + eps) with both bias corrections."""
    h, v = w.hyper, w.state["exp_avg_sq"]
    (statistic,) = sums
    if h["reduce"] in ("l1", "l2"):  # sums over parts may be infinite where the parts are not
        statistic = statistic.clamp(max=LARGEST[statistic.dtype] ** 2)
        statistic = statistic.sqrt_() if h["reduce"] == "l2" else statistic
    v.mul_(h["beta2"]).add_(statistic * h["one_minus_beta2"])
    return [h["step_size"] / (v.sqrt() * h["inv_sqrt_bias_correction2"] + h["eps"])]


def within(w: TensorView) -> torch.Tensor:
    """What gradients count as in m: finite ones at most LARGEST."""
    if not torch.compiler.is_compiling():
        if not w.grad.is_cpu:
            return w.grad
        size = w.state["exp_avg_sq"] if w.hyper["reduce"] == "mean" else w.grad  # the mean's v has seen large ones
        if not torch.linalg.vector_norm(size, torch.inf) > LARGE:
            return w.grad
    largest = LARGEST[w.grad.dtype]
    return torch.where(w.grad.isinf(), w.grad, w.grad.clamp(-largest, largest))


def update(w: TensorView, totals: dict) -> None:
    """m per coordinate, then Adam's step with the block's rate (Algorithm 1; eps outside the root)."""
    h, m = w.hyper, w.state["exp_avg"]
    (rate,) = totals["block_rate"]
    shrink(w.param, h["decay_factor"])
    m.lerp_(within(w), h["one_minus_beta1"])
    w.param.addcmul_(m, rate, value=-1)


class AdamMini(RuleOptimizer):
    """Adam-mini. Pass the model: AdamMini(model, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1).

    lr: step size of every weight, before Adam's correction; rates tuned for AdamW work. betas: decay rates of the moving
    averages of gradients and of squared gradients. eps: added to the root of the second moment.
    weight_decay: each step multiplies weights by 1 - lr * weight_decay, as in AdamW. reduce: statistic of the squared
    gradients of a block: "mean" (the paper), "max", "min", "l1" (sum), "l2".

    Blocks are derived from the model; to override them (all settings of lowmem.partition): scheme "v1.1" (the paper's),
    "v1.0" or "tensor"; value, embedding, output: "row", "tensor" or "coordinate"; biases: "coordinate" or "tensor";
    neurons: cut linear layers by output neuron (True), not (False), or only in Transformers (None); overrides: blocks by
    parameter name, {"*.mixer.weight": 8}. State: one tensor like the parameter, one fp32 number per block.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, model, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    form = "blocks"
    in_codes = True
    uses_blocks = True
    stages = (Stage(block_statistic, block_rate, (per_block,), pure=True), Stage(update))
    ways_of_codes = (eight_bit_cpu.in_c,)
    ways_on_cpu = (cpu_kernel.in_c,)
    ways_elsewhere = (gpu_step.adam, flat_blocks.adam_mini)
    ways_that_skip = (gpu_step.adam,)

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
    def replicated(blocks):
        return () if blocks.kind == "coordinate" else ("exp_avg_sq",)

    @staticmethod
    def reduction(group):
        return group["reduce"] if group["reduce"] in ("max", "min") else "sum"

    @staticmethod
    def scalars(group, step):
        return {**adam_scalars(group, step), "largest": LARGEST[torch.float32] ** 2, "reduce": group["reduce"]}
