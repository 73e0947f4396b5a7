"""torch.amp.GradScaler without a wait for the GPU: gradients are unscaled there, and a step that overflowed is not made.

GradScaler reads from the device whether a gradient overflowed before it calls step(), unless an optimizer takes `grad_scale`
and `found_inf` as attributes and leaves both to the device, as torch's fused optimizers do. Here:

    weights, moments    the Triton kernels and torch's fused AdamW look at the number themselves; of what goes through the
                        stages a copy is kept, one tensor at a time, and put back
    step counters       lie on the host and go up at once. The number is sent after them, and the next step (or a
                        save) takes the count back: by then it has long come, so that the GPU never runs out of work

So learning rates, bias corrections and whatever else a rule computes on the host are those of a run without the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowmem.optim.core.rule import Update
from lowmem.optim.core.storage import scaled
from lowmem.optim.core.transfers import download

PLACES = ("cuda",)  # whose numbers would have to be waited for


class Overflow:
    """What GradScaler tells of one step. scale: by which gradients are to be divided, None where they have been. found: not
    0 where one of them is infinite. Both are numbers on a device."""

    def __init__(self, scale: Tensor | None, found: Tensor):
        self.scale, self.found = scale, found
        self.ahead: list[Tensor] = []  # step counters that have gone up
        self._on: dict = {}

    def on(self, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
        """(scale, found as 0.0 or 1.0, factor of gradients, which is 0 where the step is not made) on a device."""
        if device not in self._on:
            found = self.found.to(device, non_blocking=True).ne(0)
            scale = None if self.scale is None else self.scale.to(device, non_blocking=True)
            factor = torch.ones((), device=device) if scale is None else scale.reciprocal()
            self._on[device] = scale, found.float(), factor.masked_fill_(found, 0.0)
        return self._on[device]

    def guarded(self, run: Callable[[Update], None], update: Update) -> None:
        """run(update) with the gradient unscaled; nothing but the gradient has changed where the step is not made."""
        scale, found, _ = self.on(update.param.device)
        changed = [update.param, *(value for key, value in update.state.items() if key != "step")]
        before = [x.clone() for x in changed]
        gradient = update.grad if scale is None else scaled(update.grad, scale.reciprocal())
        run(update._replace(grad=gradient))
        for x, old in zip(changed, before):
            x.copy_(torch.where(found.bool(), old, x))

    def send(self) -> Callable[[], None]:
        """Start the number on its way to the host; what is returned takes the step counters back where it was not 0."""
        number, wait = download(self.found)

        def settle() -> None:
            wait()
            if number.item() != 0 and self.ahead:
                torch._foreach_sub_(self.ahead, 1.0)

        return settle


class Scaled:
    """The part of a RuleOptimizer that a GradScaler talks to."""

    skips_on_device = False
    overflow: Overflow | None = None  # while a GradScaler's step runs
    _settle: Callable[[], None] | None = None  # of a last step that may have been left out on the device

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """For GradScaler: whether it may leave all to step(). Not where something else waits or communicates there."""
        parameters = (p for group in self.param_groups for p in group["params"])
        waits = self.nonfinite != "ignore" or self._offload or bool(self.shards.of)
        return self.skips_on_device and not waits and all(p.device.type in PLACES for p in parameters)

    def update_scaled(self, work: list) -> None:
        """update(work) as GradScaler asks for it, which sets `grad_scale` and `found_inf`; without one, as it is."""
        self.settle()
        if (found := getattr(self, "found_inf", None)) is None:
            self.update(work)
            return
        self.overflow = Overflow(getattr(self, "grad_scale", None), found)
        try:
            self.update(work)
        finally:
            self._settle, self.overflow = self.overflow.send(), None

    def settle(self) -> None:
        """Step counters are right from here on; waits for the last step, if a GradScaler has left it to the device."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle()
