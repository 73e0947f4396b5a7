"""Ours against published packages: CAME (came-pytorch, the authors'), Lion (lion-pytorch), SM3 and LAMB (pytorch-optimizer),
Adafactor (transformers). Where a definition differs, a test pins both."""

import copy

import pytest
import torch
import zoo
from came_pytorch import CAME as PublishedCAME
from lion_pytorch import Lion as PublishedLion
from pytorch_optimizer import SM3 as PublishedSM3
from pytorch_optimizer import Lamb as PublishedLamb
from torch import nn
from transformers.optimization import Adafactor as PublishedAdafactor

from lowmem.optim import CAME, SM3, Adafactor, Lamb, Lion

STEPS = 30
dtypes = pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-6), (torch.float64, 1e-11)])


def agree(ours, theirs, dtype, tolerance, steps=STEPS, scalars=True):
    """Both see the gradients of the published run, so that rounding does not feed back; weights end alike."""
    a, b = zoo.net(dtype), zoo.net(dtype)
    a.scale.requires_grad_(scalars), b.scale.requires_grad_(scalars)
    first, second = ours(a), theirs(b.parameters())
    start = zoo.snapshot(a)
    for step in range(steps):
        second.zero_grad()
        b(zoo.batch(step, dtype)).backward()
        for p, q in zip(a.parameters(), b.parameters()):
            p.grad = q.grad.clone() if q.requires_grad else None
        first.step()
        second.step()
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        assert torch.equal(p, start[name]) != p.requires_grad
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@dtypes
@pytest.mark.parametrize("decay, clip", [(0.0, 1.0), (0.1, 0.5)])
def test_came(dtype, tolerance, decay, clip):
    settings = dict(lr=1e-2, weight_decay=decay, clip_threshold=clip, betas=(0.9, 0.99, 0.999), eps=(1e-30, 1e-16))
    agree(lambda m: CAME(m, **settings), lambda p: PublishedCAME(p, **settings), dtype, 4 * tolerance)


@dtypes
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_lion(dtype, tolerance, decay):
    settings = dict(lr=1e-3, betas=(0.9, 0.99), weight_decay=decay)
    agree(lambda m: Lion(m, **settings), lambda p: PublishedLion(p, **settings), dtype, tolerance)


@dtypes
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.95])
def test_sm3(dtype, tolerance, momentum, beta):
    settings = dict(lr=0.1, momentum=momentum, beta=beta, eps=1e-30)
    ours, theirs = lambda m: SM3(m, **settings), lambda p: PublishedSM3(p, **settings)
    agree(ours, theirs, dtype, tolerance, scalars=beta == 0)  # see the next test


def test_sm3_treats_a_scalar_as_a_vector_of_one_where_the_package_does_not():
    """With beta > 0 an accumulator never falls; the package forgets that for scalars alone."""
    settings = dict(lr=0.1, momentum=0.0, beta=0.9, eps=1e-30)
    ends = {}
    for kind, make in (("ours", SM3), ("theirs", PublishedSM3)):
        for shape in ((), (1,)):
            p = nn.Parameter(torch.ones(shape))
            optimizer = make([p], **settings)
            for g in (10.0, 1.0, 1.0):
                p.grad = torch.full(shape, g)
                optimizer.step()
            ends[kind, shape] = p.item()
    assert ends["ours", ()] == ends["ours", (1,)] == pytest.approx(ends["theirs", (1,)], rel=1e-6)
    assert ends["theirs", ()] < ends["theirs", (1,)] - 1e-3


ADAFACTORS = {
    "fixed rate": dict(lr=1e-2, scale_parameter=False, relative_step=False, weight_decay=0.1),
    "scaled rate": dict(lr=1e-2, scale_parameter=True, relative_step=False, weight_decay=0.1),
    "momentum": dict(lr=1e-2, scale_parameter=True, relative_step=False, beta1=0.9),
    "relative step": dict(scale_parameter=True, relative_step=True),
    "warm-up": dict(scale_parameter=True, relative_step=True, warmup_init=True, weight_decay=0.1),
    "tight clip": dict(lr=1e-2, scale_parameter=False, relative_step=False, clip_threshold=0.3, decay_rate=-0.5),
}


@dtypes
@pytest.mark.parametrize("flavour", ADAFACTORS)
def test_adafactor(dtype, tolerance, flavour):
    settings = ADAFACTORS[flavour]
    theirs = lambda p: PublishedAdafactor(p, **{"lr": None, **settings})  # noqa: E731
    agree(lambda m: Adafactor(m, **settings), theirs, dtype, tolerance)


def test_relative_steps_make_the_rate_inert():
    """The flags of the Adam-mini paper's Adafactor baseline: whatever lr is, the run is the same."""
    ends = []
    for lr in (1e-4, 5e-3, 1.0):
        model = zoo.net()
        zoo.train(Adafactor(model, lr=lr, relative_step=True, warmup_init=True), model, 10)
        ends.append(zoo.snapshot(model))
    assert zoo.same(ends[0], ends[1]) and zoo.same(ends[0], ends[2])


class Unclamped(PublishedLamb):
    """The package clamps the weight norm at 10 and adds eps to the direction's norm; the published algorithm does neither."""

    clamp = float("inf")


def past_bias_correction(optimizer, model):
    """Zero moments at a step so late that bias corrections are 1: the package has none for the second moment."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].fill_(1e7)
    return optimizer


@dtypes
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_past_bias_correction(dtype, tolerance, decay):
    settings = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-9)

    def ours(model):
        optimizer = past_bias_correction(Lamb(model, **settings), model)
        optimizer.param_groups[0]["weight_decay"] = decay
        return optimizer

    def theirs(parameters):
        coupled = dict(weight_decay=decay, weight_decouple=False, adam_debias=True)
        return Unclamped(parameters, **settings, **coupled)

    agree(ours, theirs, dtype, max(tolerance, 1e-7), steps=10)


def test_lamb_corrects_bias_where_the_package_does_not():
    """Algorithm 2 of the paper divides both moments by 1 - beta^t. The ratio hides a common factor, so eps shows it."""
    gradient, settings = torch.tensor([1e-3, -2e-3]), dict(lr=0.1, betas=(0.9, 0.999), eps=1e-3)
    p = nn.Parameter(torch.ones(2))
    q = copy.deepcopy(p)
    p.grad, q.grad = gradient.clone(), gradient.clone()
    Lamb([p], **settings).step()
    Unclamped([q], **settings, weight_decouple=False).step()
    norm = torch.linalg.vector_norm
    corrected = gradient / (gradient.abs() + 1e-3)
    uncorrected = (0.1 * gradient) / (0.001**0.5 * gradient.abs() + 1e-3)
    torch.testing.assert_close(p.detach(), 1 - 0.1 * 2**0.5 * corrected / norm(corrected))
    step = 0.1 / (1 - 0.9)  # and the package divides the rate, after the ratio, by the first moment's correction
    expected = 1 - step * 2**0.5 * uncorrected / (norm(uncorrected) + 1e-3)
    torch.testing.assert_close(q.detach(), expected, rtol=1e-4, atol=1e-4)


def test_lamb_does_not_clamp_the_weight_norm_where_the_package_does():
    p = nn.Parameter(torch.full((100,), 10.0))  # norm 100
    q = copy.deepcopy(p)
    p.grad, q.grad = torch.ones(100), torch.ones(100)
    settings = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-9)
    Lamb([p], **settings).step()
    PublishedLamb([q], **settings, adam_debias=True).step()
    assert torch.allclose(10 - p, torch.full((100,), 0.01 * 100 / 10), atol=1e-4)  # lr * |w| / sqrt(n)
    assert torch.allclose(10 - q, torch.full((100,), 0.01 * 10 / 10), atol=1e-4)
