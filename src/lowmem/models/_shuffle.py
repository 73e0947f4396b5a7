"""Matrices whose entries are kept in a random order: the same network and gradients, but contiguous blocks of the stored
parameter are random sets of weights. It makes a placebo for the Hessian blocks of Adam-mini.
"""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Permute(torch.autograd.Function):
    """x.flatten()[order]; its gradient goes back by the inverse order, which is cheaper than adding into places."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.flatten()[order].view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.flatten()[ctx.saved_tensors[0]].view(gradient.shape), None, None


class Shuffled(nn.Module):
    """The stored tensor (any shape) -> the weight: the same entries in another order, fixed when it is made."""

    def __init__(self, numel: int):
        super().__init__()
        order = torch.randperm(numel)
        self.register_buffer("order", order, persistent=True)
        self.register_buffer("inverse", torch.argsort(order), persistent=False)

    def forward(self, stored: Tensor) -> Tensor:
        """The weight in its own order, from what is stored."""
        return _Permute.apply(stored, self.order, self.inverse)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored for a weight."""
        return weight.flatten()[self.inverse].view(weight.shape)


def shuffle(model: nn.Module, pattern: str) -> None:
    """Keep every matrix whose module's name fits the pattern in a random order; the network computes what it did."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Embedding)) and fnmatchcase(name, pattern):
            parametrize.register_parametrization(module, "weight", Shuffled(module.weight.numel()))
