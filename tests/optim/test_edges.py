"""Numbers at the edge of what fp32 holds: a row without gradients, one gradient whose square is infinite."""

import pytest
import torch
from torch import nn

from lowmem.optim import CAME, Adafactor, AdaLomo


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
