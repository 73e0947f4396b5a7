"""The optimizers of the paper's own Llama runs, tensor operation by tensor operation, for the accountant.

Those runs, and the independent rerun of Adam-mini's Table 2, clip gradients by their norm and then call
torch.optim.AdamW(foreach=True), which does each operation on all tensors at once and so holds a further copy of the
weights' size, or the official Adam-mini 1.1.1, a loop over the tensors. Both see DTensors, whose operations the host
needs longer to start (hardware.DTENSOR). A test counts the operations of both packages and compares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowmem.errors import Misuse, nearest

NAMES = ("adamw", "adam_mini")
LR, BETA1, BETA2, EPS, KEEP = 3e-4, 0.9, 0.95, 1e-8, 1 - 3e-4 * 0.1  # their values change no cost


class Official:
    """What accountant.py asks of an optimizer: prepare(), state, step(), zero_grad()."""

    def __init__(self, model: nn.Module, name: str, **settings):
        if name not in NAMES:
            raise Misuse(f"official: unknown optimizer {name!r}{nearest(name, NAMES)}")
        if unknown := settings.keys() - {"lr", "betas", "eps", "weight_decay"}:
            raise Misuse(f"official: {sorted(unknown)[0]!r} is not simulated; drop it, or official")
        self.mini, self.parameters, self.state = name == "adam_mini", list(model.parameters()), {}

    def prepare(self) -> None:
        """Moments as the first step makes them."""
        for p in self.parameters:
            own = local(p)
            second = own.new_zeros(rows(own), 1) if self.mini else torch.zeros_like(own)
            self.state[p] = {"first": torch.zeros_like(own), "second": second}

    @torch.no_grad()
    def step(self) -> None:
        """Clip, then update."""
        weights = [local(p) for p in self.parameters]
        gradients = [local(p.grad) for p in self.parameters]
        first, second = ([self.state[p][key] for p in self.parameters] for key in ("first", "second"))
        clip(gradients)
        if self.mini:
            for tensors in zip(weights, gradients, first, second):
                adam_mini(*tensors)
        else:
            adamw(weights, gradients, first, second)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None


def local(x: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def rows(p: Tensor) -> int:
    """Blocks of a tensor. Queries and keys have fewer, which changes nothing that could be measured."""
    return len(p) if p.ndim == 2 else 1


def clip(gradients: list[Tensor]) -> None:
    """torch.nn.utils.clip_grad_norm_(foreach=True)."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, norm.clamp(min=1.0).reciprocal())


def adamw(weights: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
    """torch.optim.AdamW(foreach=True); `scale` is the further copy."""
    torch._foreach_mul_(weights, KEEP)
    torch._foreach_lerp_(first, gradients, 1 - BETA1)
    torch._foreach_mul_(second, BETA2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
    scale = torch._foreach_sqrt(second)
    torch._foreach_div_(scale, [1.0] * len(scale))
    torch._foreach_add_(scale, EPS)
    torch._foreach_addcdiv_(weights, first, scale, [-LR] * len(scale))


def adam_mini(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> None:
    """adam-mini 1.1.1 on one tensor; v: (rows(p), 1)."""
    flat = g.view(rows(p), -1)
    v.mul_(BETA2).add_((flat * flat).mean(1, keepdim=True), alpha=1 - BETA2)
    p.mul_(KEEP)
    m.lerp_(g, 1 - BETA1)
    rate = 1.0 / v.sqrt().div(1.0).add_(EPS)
    change = (m.view(rows(p), -1) * rate).view(p.shape)
    change.mul_(LR)
    p.add_(-change)
