"""The stand-ins for lomo-optim: the official calls, in the official order, give the official weights."""

import copy
import pickle

import pytest
import torch
import zoo
from lomo_optim import AdaLomo as OfficialAdaLomo
from lomo_optim import Lomo as OfficialLomo
from zoo import language_loss, language_model

from lowmem.compat import AdaLomo, Lomo

STEPS = 12


def rate(step: int) -> float:
    return 0.1 * (1 - step / STEPS)


def train(optimizer, model, again: bool = False) -> list:
    """The loop of a script written for lomo-optim. again: it computes the loss anew after the norm, as the trainer does."""
    losses = []
    for step in range(STEPS):
        loss = language_loss(model, step)
        if optimizer.clip_grad_norm is not None and optimizer.clip_grad_norm > 0:
            optimizer.grad_norm(loss)
            loss = language_loss(model, step) if again else loss
        optimizer.fused_backward(loss, rate(step))
        losses.append(loss.item())
    return losses


@pytest.fixture
def no_cuda(monkeypatch):
    """The official AdaLomo sends its state to a GPU; here that stays where it is."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *a, **k: self)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"clip_grad_value": 0.01},
        {"clip_grad_norm": 0.05},
        {"clip_grad_norm": 0.05, "clip_grad_value": 0.01, "weight_decay": 0.1},
    ],
)
def test_a_script_of_the_official_lomo_trains_to_the_same_weights(settings, again):
    model = language_model()
    other, start = copy.deepcopy(model), zoo.snapshot(model)
    ours = train(Lomo(model, lr=0.1, **settings), model, again)
    theirs = train(OfficialLomo(other, lr=0.1, **settings), other, again)
    assert ours == pytest.approx(theirs, rel=1e-5) and not zoo.same(zoo.snapshot(model), start)
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.1, "loss_scale": 0}, {"eps": (1e-20, 1e-2), "decay_rate": -0.7}]
)
def test_a_script_of_the_official_adalomo_trains_to_the_same_weights(settings, no_cuda):
    model = language_model()
    other, start = copy.deepcopy(model), zoo.snapshot(model)
    ours = train(AdaLomo(model, lr=0.1, **settings), model)
    theirs = train(OfficialAdaLomo(other, lr=0.1, **settings), other)
    assert ours == pytest.approx(theirs, rel=1e-4) and not zoo.same(zoo.snapshot(model), start)


def test_the_rate_and_limits_are_read_as_there():
    model = language_model()
    optimizer = Lomo(model, lr=0.3, clip_grad_norm=2.0, clip_grad_value=3.0)
    assert (optimizer.lr, optimizer.clip_grad_norm, optimizer.clip_grad_value) == (0.3, 2.0, 3.0)
    optimizer.fused_backward(language_loss(model, 0), 0.2)
    assert optimizer.lr == 0.2 and optimizer.grad_norm > 0


def test_a_loss_in_float16_is_scaled_and_clipped_to_1():
    model = language_model().half()
    optimizer = Lomo(model, loss_scale_args={"init_scale": 2.0**8})
    before = zoo.snapshot(model)
    with pytest.warns(UserWarning, match="norm of 1"):
        optimizer.fused_backward(language_loss(model, 0).half(), 0.1)
    assert optimizer.clip_grad_norm == 1.0 and optimizer.scale == 2.0**8 and not zoo.same(before, zoo.snapshot(model))


@pytest.mark.parametrize(
    "wrong", [{"clip_grad_norm": 0}, {"clip_grad_norm": -1.0}, {"lr": -1.0}, {"loss_scale_args": {"scale_window": 10}}]
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("clip_grad_norm", "max_grad_norm")):
        Lomo(language_model(), **wrong)


def test_it_goes_on_from_a_pickle_and_from_a_saved_state(no_cuda):
    model = language_model()
    optimizer = AdaLomo(model)
    train(optimizer, model)
    twin, copied = pickle.loads(pickle.dumps((model, optimizer)))
    again = copy.deepcopy(model)
    loaded = AdaLomo(again)
    loaded.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (twin, copied), (again, loaded)):
        o.fused_backward(language_loss(m, 0), 0.05)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(twin)) and zoo.same(zoo.snapshot(model), zoo.snapshot(again))
