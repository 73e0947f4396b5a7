"""What an optimizer that updates inside backward must refuse, in words, with nothing updated."""

import pytest
import torch
from fused_nets import Reentrant, loss_of, net, refused, same, train_fused, train_plain, weights
from torch import nn
from torch.nn import functional as F

from lowmem.optim import (
    SGD,
    AdamMini,
    AdamW,
    FusedBackward,
    Lomo,
)


@pytest.fixture
def pair():
    model = net()
    lomo = FusedBackward(AdamMini(model, lr=0.1))
    lomo.backward(loss_of(model, 0))
    lomo.step()
    return model, lomo


def test_a_plain_backward_is_refused_by_name(pair):
    model, lomo = pair
    refused(
        lomo,
        model,
        RuntimeError,
        r"(weight|bias): loss\.backward\(\) was called.*call opt\.backward\(loss\)",
        lambda: loss_of(model, 0).backward(),
    )
    lomo.zero_grad()
    lomo.backward(loss_of(model, 0))


def test_two_backwards_without_a_step_are_refused(pair):
    model, lomo = pair
    lomo.backward(loss_of(model, 1))
    refused(lomo, model, RuntimeError, "twice without step", lambda: lomo.backward(loss_of(model, 2)))
    lomo.step()
    refused(lomo, model, RuntimeError, "before backward", lomo.step)


def test_a_gradient_left_over_is_refused_by_name(pair):
    model, lomo = pair
    with lomo.paused():
        loss_of(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    refused(
        lomo,
        model,
        RuntimeError,
        r"^inner\.0\.weight: already holds a gradient",
        lambda: lomo.backward(loss_of(model, 0)),
    )
    lomo.zero_grad()
    lomo.backward(loss_of(model, 0))


def test_backward_while_paused_and_after_close_is_refused(pair):
    model, lomo = pair
    with lomo.paused():
        refused(lomo, model, RuntimeError, "paused", lambda: lomo.backward(loss_of(model, 0)))
        with lomo.paused():
            pass
        loss_of(model, 0).backward()  # still paused
    lomo.zero_grad()
    lomo.close()
    refused(lomo, model, RuntimeError, r"opt\.close\(\)", lambda: lomo.backward(loss_of(model, 0)))
    loss_of(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert same(weights(model), weights(model))


def test_a_second_optimizer_on_the_same_weights_takes_over_and_the_first_says_so():
    model = net()
    first = Lomo(model, lr=0.1)
    second = Lomo(model, lr=0.1)
    refused(first, model, RuntimeError, "another optimizer took over", lambda: first.backward(loss_of(model, 0)))
    plain = net()
    train_plain(plain, SGD(plain, lr=0.1))
    train_fused(model, second)
    assert same(weights(plain), weights(model))


@pytest.mark.parametrize("wrong", [torch.tensor(1.0), torch.ones(2, requires_grad=True) * 2, None, 3.0], ids=str)
def test_what_is_no_loss_is_refused(pair, wrong):
    model, lomo = pair
    refused(lomo, model, (RuntimeError, TypeError), "no graph|a tensor of one number", lambda: lomo.backward(wrong))
    refused(lomo, model, (RuntimeError, TypeError), "no graph|scalar", lambda: lomo.backward(lambda: wrong))
    lomo.backward(loss_of(model, 0))


@pytest.mark.parametrize("settings", [dict(), dict(max_grad_norm=1.0)], ids=str)
def test_an_exception_inside_backward_leaves_the_optimizer_usable(settings):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise ValueError("broken on purpose")

    plain, ours = net(), net()
    lomo = Lomo(ours, lr=0.1, **settings)
    refused(lomo, ours, ValueError, "on purpose", lambda: lomo.backward(Broken.apply(loss_of(ours, 0))))
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours), 1e-6)


def test_an_exception_in_the_second_run_of_a_closure_does_not_leave_a_stale_clip():
    plain, ours = net(), net()
    lomo = Lomo(ours, lr=0.1, max_grad_norm=1e-3)
    runs = []

    def fails_second():
        runs.append(1)
        if len(runs) == 2:
            raise ValueError("on purpose")
        return loss_of(ours, 0)

    refused(lomo, ours, ValueError, "on purpose", lambda: lomo.backward(fails_second))
    lomo.max_grad_norm = None
    train_plain(plain, SGD(plain, lr=0.1))
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours))


def test_a_closure_that_builds_another_graph_the_second_time_is_refused():
    model = Reentrant()
    lomo = Lomo(model, lr=0.1)
    plans = iter([[("a", True), ("b", True)], [("a", True), ("a", True)]])

    def closure():
        model.plan = next(plans)
        return model(torch.ones(2, 4))

    refused(lomo, model, RuntimeError, "a different graph", lambda: lomo.backward(closure))


@pytest.mark.parametrize("answer", ["raise", "skip"])
def test_non_finite_gradients_are_named_or_skipped_also_without_clipping(answer):
    model = net()
    lomo = Lomo(model, lr=0.1, nonfinite=answer)
    loss = lambda: loss_of(model, 0) + (model.shared.bias * float("nan")).sum()  # noqa: E731
    before = weights(model)
    if answer == "raise":
        refused(
            lomo, model, FloatingPointError, r"shared\.bias: gradient holds inf or nan", lambda: lomo.backward(loss())
        )
    else:
        lomo.backward(loss())
        lomo.step()
        assert lomo.skipped and same(before, weights(model))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_grad_norm=0.0),
        dict(clip_value=-1.0),
        dict(grouped_norm=float("nan")),
        dict(loss_scale=0),
        dict(loss_scale="auto"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusedBackward(SGD(net(), lr=0.1), **wrong)
    with pytest.raises(TypeError, match=r"lowmem\.optim"):
        FusedBackward(torch.optim.SGD(net().parameters(), lr=0.1))


def test_an_alias_that_still_needs_the_old_weight_is_an_error_and_never_a_wrong_gradient():
    """A detached use of a weight earlier in the network reads it after its update; torch notices the changed version."""
    for build in (
        lambda m: Lomo(m, lr=0.1),
        lambda m: FusedBackward(AdamW(m, lr=0.1)),
        lambda m: FusedBackward(AdamMini(m, lr=0.1)),
    ):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
        fused = build(model)
        h = model[0](torch.randn(2, 4))
        h = F.linear(h, model[1].weight.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fused.backward(model[1](h).square().mean())
