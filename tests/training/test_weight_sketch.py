"""Sketches of weights: distances survive, and equal weights give equal sketches in every run."""

import math

import torch
from torch import nn

from lowmem.training.weight_sketch import sketch


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))


def weights(made: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def test_distances_are_kept_within_the_error_that_is_stated():
    for seed in range(5):
        a, b = model(seed), model(100 + seed)
        true = (weights(a) - weights(b)).norm().item()
        assert abs(math.dist(sketch(a, 512), sketch(b, 512)) / true - 1) < 4 * (2 / 512) ** 0.5 / 2


def test_a_sketch_is_linear_and_depends_on_nothing_but_weights():
    a = model(0)
    first = sketch(a, 64)
    torch.manual_seed(99)
    assert sketch(a, 64) == first and len(first) == 64
    with torch.no_grad():
        for p in a.parameters():
            p.mul_(2)
    assert all(abs(two - 2 * one) < 1e-4 * (1 + abs(one)) for one, two in zip(first, sketch(a, 64)))


def test_frozen_weights_are_left_out():
    a = model(0)
    before = sketch(a, 64)
    a[1].requires_grad_(False)
    assert sketch(a, 64) != before
    with torch.no_grad():
        a[1].weight.zero_()
    after = sketch(a, 64)
    a[1].bias.data.fill_(3)
    assert sketch(a, 64) == after
