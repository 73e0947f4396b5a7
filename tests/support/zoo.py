"""Every optimizer of the package under one name, and a small model to try them on: what the contract tests iterate over."""

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lowmem import optim
from lowmem.models import gpt2, llama
from lowmem.optim import CAME, SGD, SM3, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lamb, Lion, Lomo


@dataclasses.dataclass(frozen=True)
class Case:
    """name; build(params, **keywords) -> optimizer; fused: whether it works through opt.backward(loss)."""

    name: str
    build: Callable
    fused: bool = False


def _rule(cls, **fixed) -> Callable:
    return lambda params, **keywords: cls(params, **{**fixed, **keywords})


def _inside(cls, **fixed) -> Callable:
    return lambda params, **keywords: FusedBackward(cls(params, **{**fixed, **keywords}))


SETTINGS = {
    "adamw": (AdamW, dict(lr=1e-2, weight_decay=0.0)),
    "sgd": (SGD, dict(lr=1e-2)),
    "sgd-nesterov": (SGD, dict(lr=1e-2, momentum=0.9, nesterov=True)),
    "adam_mini": (AdamMini, dict(lr=1e-2)),
    "adam_mini-max": (AdamMini, dict(lr=1e-2, reduce="max")),
    "adafactor": (Adafactor, dict(lr=1e-2)),
    "adafactor-zhai": (Adafactor, dict(lr=1e-2, variant="zhai")),
    "came": (CAME, dict(lr=1e-2)),
    "sm3": (SM3, dict(lr=1e-2)),
    "lion": (Lion, dict(lr=1e-3)),
    "lamb": (Lamb, dict(lr=1e-2)),
    "adamw-int8": (AdamW, dict(lr=1e-2, weight_decay=0.0, state_dtype="int8")),
    "adam_mini-int8": (AdamMini, dict(lr=1e-2, state_dtype="int8")),
    "lion-int8": (Lion, dict(lr=1e-3, state_dtype="int8")),
}
for name in optim.names():  # a new one needs no entry: its defaults
    if (found := optim.find(name)) not in {cls for cls, _ in SETTINGS.values()} and not issubclass(
        found, FusedBackward
    ):
        SETTINGS[name] = (found, {})
RULES = [Case(name, _rule(cls, **fixed)) for name, (cls, fixed) in SETTINGS.items()]
FUSED = [Case(f"fused-{name}", _inside(cls, **fixed), True) for name, (cls, fixed) in SETTINGS.items()]
FUSED += [
    Case("lomo", _rule(Lomo, lr=1e-2), True),
    Case("lomo-norm", _rule(Lomo, lr=1e-2, max_grad_norm=0.1, clip_value=0.05), True),
    Case("adalomo", _rule(AdaLomo, lr=1e-2), True),
]
ALL = RULES + FUSED


class Net(nn.Module):
    """A matrix, a vector, a 4-axis filter and a scalar, each with a gradient."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.conv = nn.Conv2d(2, 3, 2, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3 + 2 * 9) -> scalar."""
        image = x[:, 3:].reshape(-1, 2, 3, 3)
        out = (self.linear(x[:, :3]) * self.scale).tanh().square().mean()
        return out + (self.conv(image) - 0.3).square().mean()


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(5, 21, generator=generator, dtype=torch.float64).to(dtype)


def advance(optimizer, model: nn.Module, step: int) -> Tensor:
    """One training step the way this optimizer wants it; returns the loss."""
    loss = model(batch(step, next(model.parameters()).dtype))
    return apply(optimizer, loss)


def apply(optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    if hasattr(optimizer, "backward"):  # gradients are used inside backward, all or some of them
        optimizer.backward(loss)
    else:
        loss.backward()
    optimizer.step()
    return loss.detach()


def train(optimizer, model: nn.Module, steps: int, start: int = 0) -> list[float]:
    return [advance(optimizer, model, step).item() for step in range(start, start + steps)]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise equality, nan included."""
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(7e9), b[k].nan_to_num(7e9)) for k in a)


def state_tensors(optimizer) -> dict[str, Tensor]:
    """All state tensors, flat, by parameter index and key."""
    saved = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v.clone() for i, s in saved.items() for k, v in s.items() if isinstance(v, Tensor)}


def trained(case, steps=3, dtype=torch.float32, **keywords):
    model = net(dtype)
    optimizer = case.build(model, **keywords)
    train(optimizer, model, steps)
    return model, optimizer


def refuses(optimizer, model, error, match, act):
    """`act` raises, and neither weights nor state changed by a bit."""
    weights, state = snapshot(model), state_tensors(optimizer)
    with pytest.raises(error, match=match):
        act()
    assert same(weights, snapshot(model))
    assert same(state, state_tensors(optimizer))


def feed(case, optimizer, parameters, gradients):
    """One step on gradients given by hand, also for optimizers that work inside backward."""
    if case.fused:
        optimizer.backward(sum((p * g).sum() for p, g in zip(parameters, gradients)))
    else:
        for p, g in zip(parameters, gradients):
            p.grad = g.clone(memory_format=torch.preserve_format)
    optimizer.step()


def loose(case, parameters, **keywords):
    """An optimizer over bare parameters; the advice that comes with it is not the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return case.build(parameters, **keywords)


# -- tiny language models ------------------------------------------------------------------------------------------------

TINY = dict(n_layer=2, n_head=2, n_embd=16, vocab_size=11, block_size=8)


def language_model(make=gpt2) -> nn.Module:
    torch.manual_seed(0)
    return make.build(**TINY, **({"n_hidden": 24} if make is llama else {}))


def tokens(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 11, (3, 9), generator=generator)


def language_loss(model: nn.Module, step: int) -> Tensor:
    data = tokens(step)
    return model(data[:, :-1], data[:, 1:])


def double_loss(model: nn.Module, step: int) -> Tensor:
    """Without the fp32 logits of the model's own loss, so that fp64 gradients stay exact."""
    data = tokens(step)
    return F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())


def checkpointed(reentrant: bool) -> Callable:
    """The loss of a GPT-2 whose blocks run under activation checkpointing."""

    def loss(model: nn.Module, step: int) -> Tensor:
        data = tokens(step)
        x = model.tokens(data[:, :-1]) + model.positions.weight[:8]
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return F.cross_entropy(model.head(model.norm(x)).flatten(0, 1), data[:, 1:].flatten())

    return loss
