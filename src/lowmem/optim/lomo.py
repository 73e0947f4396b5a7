"""LOMO (Lv et al., arXiv 2306.09782, Algorithm 1): SGD inside backward, one gradient alive at a time.

Official code: the package lomo-optim 0.1.1; deliberate differences are listed in fused_backward.py. In 16-bit weights most
updates round away at the paper's learning rates; rounding="stochastic" keeps them on average.
"""

from typing import Unpack

from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.optim.core.hyperparameters import COMMON, Common, refuse_unknown
from lowmem.optim.core.rule_optimizer import RuleOptimizer
from lowmem.optim.sgd import SGD


class LomoRule(SGD):
    """LOMO's update as a plain optimizer with step(): SGD that has no momentum to switch on, with decoupled decay."""

    optional_state = ()

    def __init__(self, params, lr=1e-3, weight_decay=0.0, **common: Unpack[Common]):
        RuleOptimizer.__init__(self, params, dict(lr=lr, weight_decay=weight_decay), **common)

    @staticmethod
    def init(p, group, blocks, dtype):
        return {}

    @staticmethod
    def scalars(group, step):
        return {"lr": group["lr"], "weight_decay": group["weight_decay"], "momentum": 0, "decoupled": True}


class Lomo(FusedBackward):
    """LOMO: opt = Lomo(model, lr=3e-2, max_grad_norm=1.0); then opt.backward(loss); opt.step().

    Unclipped, it equals SGD bit for bit in fp32; with max_grad_norm it equals clip_grad_norm_ and SGD. Decay is
    decoupled, as in the official package: each step multiplies weights by 1 - lr * weight_decay.

    lr: step size. max_grad_norm, grouped_norm, clip_value, loss_scale, process_group: see FusedBackward.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        *,
        max_grad_norm=None,
        grouped_norm=None,
        clip_value=None,
        weight_decay=0.0,
        loss_scale=None,
        process_group=None,
        **common: Unpack[Common],
    ):
        refuse_unknown(type(self), {key: value for key, value in common.items() if key not in COMMON})
        rule = LomoRule(params, lr, weight_decay, **common)
        super().__init__(rule, max_grad_norm, grouped_norm, clip_value, loss_scale, process_group)
