"""AdaLomo (Lv et al., arXiv 2310.10195, Algorithm 1): a factored second moment and a normalised update inside backward.

Official code: the package lomo-optim 0.1.1. The rule is Adafactor's without momentum: beta2_t = 1 - t^-0.8, per-tensor
update clipping at RMS 1, rate lr * max(1e-3, RMS(w)), decay by that rate. The paper prints u = g / v and a constant
beta; the code divides by the root of v and schedules beta, and so do we. Deliberate
differences: works on CPU and for tensors of any number of axes, and its state is in state_dict().
"""

from typing import Unpack

from lowmem.optim.adafactor import Adafactor
from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.optim.core.hyperparameters import COMMON, Common, refuse_unknown


class AdaLomoRule(Adafactor):
    """AdaLomo's update as a plain optimizer with step(); AdaLomo runs it inside backward."""

    def __init__(
        self,
        params,
        lr=1e-3,
        decay_rate=-0.8,
        eps=(1e-30, 1e-3),
        clip_threshold=1.0,
        weight_decay=0.0,
        **common: Unpack[Common],
    ):
        super().__init__(
            params,
            lr,
            decay_rate=decay_rate,
            eps=eps,
            clip_threshold=clip_threshold,
            weight_decay=weight_decay,
            scale_parameter=True,
            relative_step=False,
            **common,
        )


class AdaLomo(FusedBackward):
    """AdaLomo: AdaLomo(model, lr=5e-4); then opt.backward(loss). According to the authors, norm clipping is not needed.

    lr: step size relative to each tensor. decay_rate: beta2_t = 1 - t^decay_rate. eps: added to g^2, and the least size of a
    tensor that scales its rate. clip_threshold: maximum root mean square of an update. weight_decay: each step
    multiplies weights by 1 - lr * max(eps[1], RMS(weights)) * weight_decay.
    max_grad_norm, grouped_norm, clip_value, loss_scale, process_group: see FusedBackward.

    Common keywords, the same for every optimizer here and explained at lowmem.optim.core.rule_optimizer.RuleOptimizer:
    params, no_decay, rounding, state_dtype, nonfinite, compile, offload.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        *,
        decay_rate=-0.8,
        eps=(1e-30, 1e-3),
        clip_threshold=1.0,
        weight_decay=0.0,
        max_grad_norm=None,
        grouped_norm=None,
        clip_value=None,
        loss_scale=None,
        process_group=None,
        **common: Unpack[Common],
    ):
        refuse_unknown(type(self), {key: value for key, value in common.items() if key not in COMMON})
        rule = AdaLomoRule(params, lr, decay_rate, eps, clip_threshold, weight_decay, **common)
        super().__init__(rule, max_grad_norm, grouped_norm, clip_value, loss_scale, process_group)
