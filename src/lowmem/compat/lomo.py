"""The signatures of lomo-optim 0.1.1 on this package's Lomo and AdaLomo: a script changes its import and nothing else.

    from lowmem.compat import AdaLomo, Lomo          # was: from lomo_optim import AdaLomo, Lomo
    optimizer.grad_norm(loss)                        # where clip_grad_norm is set
    optimizer.fused_backward(loss, lr)

The norm is measured in fused_backward, over the same graph, so grad_norm(loss) does nothing: the loss may be computed anew
after it, as the official trainer does, or be used again, and a script may also leave the call out. Numbers agree with the
official package wherever it is right (see lowmem.optim.core.fused_backward for where it is not). Without DeepSpeed's
ZeRO-3, whose parts of weights only the official code updates; under fully_shard see lowmem.optim.Lomo.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowmem.optim import adalomo, lomo
from lowmem.optim.core.loss_scale import LossScale

# Defaults of the official loss scaler. Those of HARMLESS decide how it reports, and when it gives up.
SCALER = {"init_scale": 2.0**32, "scale_factor": 2.0, "scale_window": 1000, "min_scale": 1}
HARMLESS = ("delayed_shift", "consecutive_hysteresis", "raise_error_at_min_scale", "dtype")


class _Norm(float):
    """A norm that scripts may call like the official method."""

    def __call__(self, loss: Tensor) -> None:
        """Does nothing: fused_backward measures."""


class _Scaler(NamedTuple):
    """What scripts read of the official loss scaler. Overflows are found in fused_backward, which leaves the step out."""

    loss_scale: float
    has_overflow_serial: bool = False


class _Official:
    """The calls of the official classes, for a FusedBackward."""

    zero3_enabled = False

    @property
    def lr(self) -> float:
        """The rate of the last step."""
        return self.param_groups[0]["lr"]

    @property
    def clip_grad_norm(self) -> float | None:
        """The norm that gradients are clipped to; scripts ask it whether to call grad_norm."""
        return self.max_grad_norm

    @property
    def loss_scaler(self) -> _Scaler | None:
        """The scale of a loss in float16, for scripts that look at it; None without one."""
        return _Scaler(self.scale) if self.loss_scale.dynamic else None

    @property
    def clip_grad_value(self) -> float | None:
        """What gradients are clamped to."""
        return self.clip_value

    @property
    def grad_norm(self) -> _Norm:
        """The last norm that was measured, nan before; calling it as grad_norm(loss) does nothing, see the module docstring."""
        return self._norm

    @grad_norm.setter
    def grad_norm(self, value: float | None) -> None:
        self._norm = _Norm("nan" if value is None else value)

    def fused_backward(self, loss: Tensor, lr: float) -> None:
        """Backward and update in one, with the rate of this step. loss: a scalar tensor."""
        for group in self.param_groups:
            group["lr"] = lr
        self.backward(loss)
        self.step()


class Lomo(_Official, lomo.Lomo):
    """LOMO with the official arguments; see the module docstring.

    model: whose weights train. lr: step size, replaced by the one of each fused_backward. clip_grad_norm, clip_grad_value:
    as max_grad_norm and clip_value of lowmem.optim.Lomo. loss_scale_args: init_scale of the scaler of a loss in float16, which
    starts at 2^32 as the official one and, without clip_grad_norm, clips to 1; its other settings only at their defaults.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
        loss_scale_args: dict | None = None,
    ):
        arguments = {**SCALER, **(loss_scale_args or {})}
        others = [
            key for key in arguments if arguments[key] != SCALER.get(key) and key not in ("init_scale", *HARMLESS)
        ]
        if others:
            raise ValueError(
                f"loss_scale_args: {', '.join(others)} cannot be set; lowmem.optim.Lomo's scale doubles after 1000 steps"
            )
        self.first_scale = float(arguments["init_scale"])
        super().__init__(model, lr, max_grad_norm=clip_grad_norm, clip_value=clip_grad_value, weight_decay=weight_decay)

    def load(self, state_dict: dict) -> None:
        """See lowmem.optim.Lomo; the scale of a loss in float16 goes on as it was saved."""
        saved, before = state_dict.get("fused"), (self.loss_scale, self.max_grad_norm)
        if isinstance(saved, dict) and saved.get("dynamic"):
            self.loss_scale = LossScale("dynamic")
            self.max_grad_norm = self.max_grad_norm or 1.0
        try:
            super().load(state_dict)
        except Exception:  # a state that cannot be used changes nothing
            self.loss_scale, self.max_grad_norm = before
            raise

    def fused_backward(self, loss: Tensor, lr: float) -> None:
        """Backward and update in one, with the rate of this step; a loss in float16 is scaled. loss: a scalar tensor."""
        if loss.dtype == torch.float16 and not self.loss_scale.dynamic:
            self.loss_scale = LossScale("dynamic")
            self.loss_scale.value = self.first_scale
            if self.max_grad_norm is None:
                warnings.warn("a loss in float16: gradients are clipped to a norm of 1, as in lomo-optim", stacklevel=2)
                self.max_grad_norm = 1.0
        super().fused_backward(loss, lr)


class AdaLomo(_Official, adalomo.AdaLomo):
    """AdaLomo with the official arguments; see the module docstring.

    model: whose weights train. lr: replaced by the one of each fused_backward. loss_scale: a factor on the loss that
    gradients are divided by again. eps, clip_threshold, decay_rate, weight_decay: as in lowmem.optim.AdaLomo.
    clip_grad_norm, clip_grad_value: its max_grad_norm and clip_value.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        loss_scale: float = 2**10,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            model,
            lr,
            decay_rate=decay_rate,
            eps=eps,
            clip_threshold=clip_threshold,
            weight_decay=weight_decay,
            max_grad_norm=clip_grad_norm,
            clip_value=clip_grad_value,
            loss_scale=loss_scale or None,
        )
