"""Numbers at the edge of what fp32 holds: a row without gradients, one gradient whose square is infinite."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import twins
from compiler import without_kernel
from torch import nn

from lowmem.optim import CAME, Adafactor, AdaLomo, AdamMini, FusedBackward, Lomo
from lowmem.optim.core import flat_blocks
from lowmem.optim.core.clipping import total_norm
from lowmem.optim.core.combined import CombinedOptimizer
from lowmem.training.update import Updates


def run(rule, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The weights after each step with these gradients."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 16, bias=False)
    optimizer, found = rule(layer, lr=1e-3), []
    for gradient in gradients:
        if rule is AdaLomo:
            optimizer.backward((layer.weight * gradient).sum())
        else:
            layer.weight.grad = gradient.clone()
        optimizer.step()
        found.append(layer.weight.detach().clone())
    return found


@pytest.mark.parametrize("rule", [Adafactor, CAME, AdaLomo])
@pytest.mark.parametrize("size", [1e8, 1e12, 1e15, 1e18])
def test_a_row_of_zeros_beside_large_gradients_stays_where_it_is_and_the_others_move(rule, size):
    gradient = size * torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    gradient[3] = 0
    first, *_, last = run(rule, [gradient] * 4)
    assert last.isfinite().all()
    assert torch.equal(last[3], first[3]) and (last - first)[:3].abs().min() > 0


def test_a_row_of_zeros_moves_the_others_as_torch_does():
    gradient = 1e8 * torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    gradient[3] = 0
    torch.manual_seed(0)
    theirs = nn.Linear(8, 16, bias=False)
    optimizer = torch.optim.Adafactor(theirs.parameters(), lr=1e-3, weight_decay=0, foreach=False)
    theirs.weight.grad = gradient.clone()
    optimizer.step()
    [ours] = run(lambda model, lr: Adafactor(model, lr=lr, relative_step="capped"), [gradient])
    torch.testing.assert_close(ours, theirs.weight.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", [Adafactor, CAME, AdaLomo])
def test_one_finite_gradient_whose_square_is_infinite_leaves_finite_weights_that_still_move(rule):
    usual = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    odd = usual.clone()
    odd[2, 3] = 3e19
    before, after, *_, last = run(rule, [usual, odd, *[usual] * 6])
    assert last.isfinite().all() and (last - after).abs().max() > 0 and (after - before).isfinite().all()


WAYS = ("C", "stages", "flat", "bf16", "float64")


def adam_mini(way: str, gradients: list[torch.Tensor], monkeypatch, **settings):
    """(optimizer, weights after each step) of four equal layers with biases: the gradients act on the weights of each."""
    if way != "C":
        without_kernel(monkeypatch)
    if way == "flat":
        monkeypatch.setattr(AdamMini, "ways_on_cpu", (flat_blocks.adam_mini,))
    dtype = {"bf16": torch.bfloat16, "float64": torch.float64}.get(way, torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 16) for _ in range(4)]).to(dtype)
    optimizer, found = AdamMini(model, lr=1e-3, betas=settings.pop("betas", (0.9, 0.95)), **settings), []
    for gradient in gradients:
        for layer in model:
            layer.weight.grad, layer.bias.grad = gradient.to(dtype), gradient[:, 0].to(dtype)
        optimizer.step()
        found.append(torch.stack([layer.weight.detach().clone() for layer in model]))
    return optimizer, found


@pytest.mark.parametrize("reduce", ["mean", "max", "min", "l1", "l2"])
@pytest.mark.parametrize("size", [2e19, 1e25, 1e38])
@pytest.mark.parametrize("way", WAYS)
def test_one_huge_finite_gradient_leaves_adam_minis_moments_finite(way, size, reduce, monkeypatch):
    usual = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    odd = usual.clone()
    odd[2, 0] = size
    optimizer, (*_, before, last) = adam_mini(way, [usual, odd, *[usual] * 6], monkeypatch, reduce=reduce)
    assert all(t.isfinite().all() for state in optimizer.state.values() for t in state.values())
    assert last.isfinite().all() and (last[:, 2] != before[:, 2]).any()


@pytest.mark.parametrize("way", WAYS)
def test_without_memory_of_squares_a_huge_gradient_is_soon_forgotten(way, monkeypatch):
    usual = torch.ones(16, 8)
    gradients = [usual, 1e20 * usual, usual, usual]
    _, (first, second, third, last) = adam_mini(way, gradients, monkeypatch, betas=(0.0, 0.0))
    assert (second != first).all() and second.isfinite().all()
    tolerance = 1e-2 if way == "bf16" else 2e-5
    torch.testing.assert_close(last - third, torch.full_like(third, -1e-3), atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [3e19, 1e24, 3e38])
@pytest.mark.parametrize("way", ["C", "stages", "compiled"])
def test_a_huge_finite_gradient_moves_weights_as_in_the_twin(way, size, monkeypatch):
    """A single one, whose square is infinite in fp32: its block moves as far as in double precision, and no further."""
    odd = torch.full((16, 8), 1.0)
    odd[2, 0] = -size
    gradients = [torch.full((16, 8), 1.0), odd, *[torch.full((16, 8), 2.0)] * 3]
    twin = twins.AdamMini([twins.every((16, 8))], 1e-3, (0.9, 0.95), 1e-8, 0.0)
    torch.manual_seed(0)
    layer, weights = nn.Linear(8, 16, bias=False), None
    if way != "C":
        without_kernel(monkeypatch)
    optimizer = AdamMini(
        [("weight", layer.weight)],
        lr=1e-3,
        betas=(0.9, 0.95),
        overrides={"weight": "tensor"},
        compile=way == "compiled",
    )
    weights = layer.weight.detach().double().numpy()
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        optimizer.step()
        weights = twin.step(weights, gradient.double().numpy())
        np.testing.assert_allclose(layer.weight.detach().numpy(), weights, atol=1e-6)
    assert optimizer.state[layer.weight]["exp_avg_sq"].item() == pytest.approx(twin.v[0])


@pytest.mark.parametrize("way", ["C", "stages"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_an_infinite_gradient_stays_loud(way, dtype, monkeypatch):
    if way != "C":
        without_kernel(monkeypatch)
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = AdamMini([("weight", weight)], lr=1e-3, state_dtype=dtype, overrides={"weight": "tensor"})
    weight.grad = torch.ones(64, 64)
    weight.grad[3, 3] = torch.inf
    optimizer.step()
    assert not weight.isfinite().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_what_is_not_finite_shows(way, odd, monkeypatch):
    bad = torch.ones(16, 8)
    bad[2, 3] = odd
    _, (*_, last) = adam_mini(way, [torch.ones(16, 8), bad], monkeypatch)
    assert not last[:, 2].isfinite().all()


@pytest.mark.parametrize("size", [1e10, 3e19, 1e30])
@pytest.mark.parametrize("nonfinite", ["ignore", "skip", "raise"])
def test_lomo_clips_a_finite_gradient_whose_square_is_infinite(size, nonfinite):
    for limit in ({"max_grad_norm": 1.0}, {"grouped_norm": 1.0}):
        weight = nn.Parameter(torch.zeros(4, 4))
        model = nn.Module()
        model.weight = weight
        optimizer = Lomo(model, lr=1.0, nonfinite=nonfinite, **limit)
        optimizer.backward((weight * size).sum())
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.full((4, 4), -0.25))


def test_a_total_norm_beyond_fp32s_squares_is_exact_and_an_ordinary_one_torchs_own():
    large = [torch.full((3,), 1e25), torch.full((6,), 1e25)]
    assert total_norm(large).item() == pytest.approx(3e25)
    usual = [torch.randn(7, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    assert torch.equal(total_norm(usual), torch.nn.utils.get_total_norm(usual))
    assert not math.isfinite(total_norm([torch.tensor([math.inf])]))


def test_what_stands_beside_lomo_is_clipped_though_its_squares_are_infinite():
    one, two = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(4))
    both = CombinedOptimizer(FusedBackward(AdamMini(one)), torch.optim.SGD([("two", two)], lr=1.0), max_grad_norm=1.0)
    both.backward(one.weight.sum() + (two * 1e30).sum())
    both.step()
    torch.testing.assert_close(two.detach(), torch.full((4,), -0.5))


@pytest.mark.parametrize("size", [1e10, 3e19, 1e30])
def test_the_training_loop_clips_a_finite_gradient_whose_square_is_infinite(size):
    weight = nn.Parameter(torch.zeros(4))
    model = nn.ParameterList([weight])
    settings = {"steps": 1, "batch_size": 1, "grad_clip": 1.0}
    updates = Updates(SimpleNamespace(model=model), torch.optim.SGD([weight], lr=1.0), settings, None, "cpu")
    weight.grad = torch.full((4,), size)
    assert updates.clip() == pytest.approx(2 * size)
    torch.testing.assert_close(weight.grad, torch.full((4,), 0.5))
