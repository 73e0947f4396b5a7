"""Loss scaling inside backward: it grows, shrinks, and skips what is not finite."""

import io
import math

import pytest
import torch
from fused_nets import batch, loss_of, net, refused, same, train_fused, train_plain, weights
from torch import nn

from lowmem.optim import SGD, Lomo
from lowmem.optim.core import loss_scale


@pytest.mark.parametrize(
    "settings",
    [dict(loss_scale=1024.0), dict(loss_scale="dynamic"), dict(loss_scale="dynamic", max_grad_norm=0.05)],
    ids=str,
)
def test_loss_scaling_changes_nothing_but_rounding(settings):
    plain, ours = net(), net()
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    lomo = Lomo(ours, lr=0.1, **settings)
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours), 1e-6)


def test_dynamic_scale_halves_and_skips_until_gradients_fit():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 2.0**127
    before = weights(model)
    skipped = 0
    for _ in range(120):  # fp32 norms are finite up to 1e19
        lomo.backward(loss_of(model, 0, 1e6))
        lomo.step()
        if not lomo.skipped:
            break
        skipped += 1
        assert (
            same(before, weights(model)) and lomo.scale == 2.0 ** (127 - skipped) and lomo.loss_scale.clean_steps == 0
        )
    assert skipped >= 1 and not lomo.skipped and not same(before, weights(model))
    assert lomo.loss_scale.clean_steps == 1 and all(p.isfinite().all() for p in model.parameters())


def test_dynamic_scale_grows_after_the_window_and_not_before(monkeypatch):
    monkeypatch.setattr(loss_scale, "WINDOW", 3)
    model = net()
    lomo = Lomo(model, lr=0.01, loss_scale="dynamic")
    scales = []
    for step in range(7):
        if step == 4:
            lomo.backward(loss_of(model, 0, float("inf")))  # starts the count again
        else:
            lomo.backward(loss_of(model, step))
        lomo.step()
        scales.append(math.log2(lomo.scale))
    assert scales == [16, 16, 17, 17, 16, 16, 16]


def test_overflow_at_the_smallest_scale_is_an_error_and_moves_nothing():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 1.0
    refused(
        lomo,
        model,
        FloatingPointError,
        r"weight|bias.*smallest loss scale",
        lambda: lomo.backward(loss_of(model, 0, float("inf"))),
    )
    lomo.backward(loss_of(model, 0))


def test_half_precision_weights_overflow_skip_and_then_train():
    torch.manual_seed(0)
    model = nn.Linear(8, 8).half()
    x = torch.randn(4, 8).half()
    lomo = Lomo(model, lr=0.01, loss_scale="dynamic", max_grad_norm=1.0)
    first = float(model(x).detach().float().square().mean())
    for _ in range(30):
        lomo.backward(model(x).float().square().mean() * 16)
        lomo.step()
    assert lomo.scale < 2.0**16 and lomo.loss_scale.clean_steps > 0
    assert float(model(x).detach().float().square().mean()) < first and model.weight.isfinite().all()


def test_scale_and_clean_steps_are_saved_and_restored():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 2.0**127
    for _ in range(3):
        lomo.backward(loss_of(model, 0, 1e6))
        lomo.step()
    stream = io.BytesIO()
    torch.save(lomo.state_dict(), stream)
    stream.seek(0)
    other = Lomo(net(), lr=0.1, loss_scale="dynamic")
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert (other.scale, other.loss_scale.clean_steps) == (lomo.scale, lomo.loss_scale.clean_steps) != (2.0**16, 0)


def test_infinite_gradients_do_what_clip_grad_norm_does_when_nobody_asked():
    plain, ours = net(), net()
    sgd, lomo = torch.optim.SGD(plain.parameters(), lr=0.1), Lomo(ours, lr=0.1, max_grad_norm=1.0)
    for model in (plain, ours):
        loss = model.inner[0](batch(0)).sum() + model.head.weight.sum() * float("inf")
        if model is plain:
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            sgd.step()
        else:
            lomo.backward(loss)
    assert all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a[a.isfinite()], b[b.isfinite()])
        for a, b in zip(weights(plain), weights(ours))
    )
