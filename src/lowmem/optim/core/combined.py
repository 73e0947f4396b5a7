"""Two optimizers in one run: one inside backward on some parameters, another after it on the rest (LoRA + LOMO).

The loop sees one optimizer: opt.backward(loss); opt.step(). The second one's gradients are there when backward ends,
once, as FusedBackward leaves gradients of parameters that are not its own.
"""

import torch
from torch import Tensor

from lowmem.optim.core.clipping import total_norm
from lowmem.optim.core.fused_backward import FusedBackward
from lowmem.optim.core.torch_optimizer import Optimizer


class CombinedOptimizer(Optimizer):
    """fused: updates inside backward. beside: an optimizer with step(), on other parameters. max_grad_norm clips the
    gradients of `beside` by their own global norm; `fused` clips by itself. grad_norm is that of `fused`."""

    def __init__(self, fused: FusedBackward, beside: torch.optim.Optimizer, max_grad_norm: float | None = None):
        if not isinstance(fused, FusedBackward):
            raise TypeError(
                "beside needs an optimizer that updates inside backward, such as lomo, for the other parameters"
            )
        self.fused, self.beside, self.max_grad_norm = fused, beside, max_grad_norm
        super().__init__([*fused.param_groups, *beside.param_groups], {})
        self.share()

    def share(self) -> None:
        """One list over the groups and states of both, so that schedules and counts of bytes see everything."""
        self.param_groups = [*self.fused.param_groups, *self.beside.param_groups]
        self.state = {**self.fused.state, **self.beside.state}

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Both optimizers, for saving or reading them one by one."""
        return self.fused, self.beside

    @property
    def grad_norm(self) -> float | None:
        """Gradient norm of the last backward, of the parameters updated inside it; None where none was taken."""
        return self.fused.grad_norm

    def backward(self, loss) -> Tensor:
        """See FusedBackward.backward."""
        return self.fused.backward(loss)

    def step(self, closure=None) -> None:
        """Finish the step of both."""
        self.fused.step()
        if self.max_grad_norm:
            parameters = [p for group in self.beside.param_groups for p in group["params"]]
            norm = total_norm([p.grad for p in parameters if p.grad is not None])
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.beside.step()
        self.share()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self.fused.zero_grad(set_to_none)
        self.beside.zero_grad(set_to_none)

    def save(self) -> dict:
        """The state of both optimizers."""
        return {"fused": self.fused.state_dict(), "beside": self.beside.state_dict()}

    def load(self, state_dict: dict) -> None:
        """Take over what save() returned."""
        self.fused.load_state_dict(state_dict["fused"])
        self.beside.load_state_dict(state_dict["beside"])
        self.share()
