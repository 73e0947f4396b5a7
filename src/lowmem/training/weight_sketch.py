"""A short sum of all weights: distances between two sketches estimate distances between two sets of weights."""

import torch
from torch import Tensor, nn


def sketch(model: nn.Module, size: int) -> list[float]:
    """Count sketch (Charikar, Chen and Farach-Colton 2002) of all trainable weights, `size` numbers.

    Each weight is added to one of `size` sums, with a sign; place and sign are drawn once from its position, so they are
    the same in every run. The squared distance of two sketches is the squared distance of the weights on average, with
    a relative standard deviation of (2 / size)^(1/2). Weights that are spread over devices are gathered one by one.
    """
    sums = torch.zeros(size, dtype=torch.float64)
    generator = torch.Generator()
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        weights = whole(parameter.detach()).flatten().to("cpu", torch.float64)
        generator.manual_seed(number)
        drawn = torch.randint(2 * size, (weights.numel(),), generator=generator)
        sums.index_add_(0, drawn % size, torch.where(drawn < size, weights, -weights))
    return [float(f"{value:.6g}") for value in sums.tolist()]  # six digits: far below the sketch's own error


def whole(weights: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded."""
    return weights.full_tensor() if hasattr(weights, "full_tensor") else weights
