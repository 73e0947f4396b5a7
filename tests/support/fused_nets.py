"""A small network and plain training steps, beside which updates inside backward are held."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowmem.optim import (
    CAME,
    SGD,
    SM3,
    Adafactor,
    AdamMini,
    AdamW,
    Lamb,
    Lion,
)

RULES = {
    "sgd": lambda m: SGD(m, lr=0.05),
    "sgd momentum": lambda m: SGD(m, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: AdamW(m, lr=1e-2, weight_decay=0.1),
    "adam_mini": lambda m: AdamMini(m, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda m: Adafactor(m, lr=1e-2),
    "came": lambda m: CAME(m, lr=1e-2),
    "sm3": lambda m: SM3(m, lr=1e-2),
    "lion": lambda m: Lion(m, lr=1e-3),
    "lamb": lambda m: Lamb(m, lr=1e-2),
}


class Net(nn.Module):
    """Two blocks of which one is used three times, dropout, and optionally checkpoints of either kind."""

    def __init__(self, dropout=0.0, reentrant: bool | None = None):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.dropout, self.reentrant = nn.Dropout(dropout), reentrant

    def segment(self, layer, x):
        return self.dropout(torch.tanh(layer(x)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            if self.reentrant is None:
                x = self.segment(layer, x)
            else:
                x = checkpoint(self.segment, layer, x, use_reentrant=self.reentrant)
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return self.head(x)


def net(seed=0, **settings) -> Net:
    torch.manual_seed(seed)
    return Net(**settings)


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(
        4, 6, generator=generator
    ).requires_grad_()  # reentrant checkpoints need an input with a gradient


def loss_of(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    return factor * model(batch(step)).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b, tolerance: float = 0.0) -> bool:
    return all(
        torch.equal(x, y) if tolerance == 0 else torch.allclose(x, y, rtol=tolerance, atol=tolerance)
        for x, y in zip(a, b, strict=True)
    )


def train_plain(model, optimizer, steps=3, clip=None, value=None, factor=1.0, loss=loss_of):
    """backward, norm measured on unclamped gradients, value clamp, norm coefficient, step: the official order."""
    for step in range(steps):
        torch.manual_seed(1000 + step)
        loss(model, step, factor).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for g in gradients:
            if value is not None:
                g.clamp_(-value, value)
            if clip is not None:
                g.mul_(min(1.0, clip / (norm + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()


def train_fused(model, optimizer, steps=3, closure=False, factor=1.0, loss=loss_of):
    for step in range(steps):
        torch.manual_seed(1000 + step)
        optimizer.backward((lambda step=step: loss(model, step, factor)) if closure else loss(model, step, factor))
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


def refused(optimizer, model, kind, message, act) -> None:
    """act raises one line, and no weight and no state moved by a bit."""
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(kind, match=message) as error:
        act()
    assert "\n" not in str(error.value)
    assert same(before, weights(model))
    after = optimizer.state_dict()
    assert after["fused"] == state["fused"]
    for i, entries in state["state"].items():
        assert all(torch.equal(value, after["state"][i][key]) for key, value in entries.items())


class Reentrant(nn.Module):
    """Reentrant checkpoints over a list of (layer, inside a checkpoint or not) that may change from step to step."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.plan = [("a", True), ("b", True), ("c", False)]

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        for name, inside in self.plan:
            layer = getattr(self, name)
            x = checkpoint(layer, x, use_reentrant=True) if inside else layer(x)
        return x.square().mean()
