"""LOMO and AdaLomo against the official package lomo-optim 0.1.1: equal where it is right, and one test for every place
where it is not, which asserts its failure and our right answer."""

import copy

import pytest
import torch
import zoo
from lomo_optim import AdaLomo as OfficialAdaLomo
from lomo_optim import Lomo as OfficialLomo
from torch import nn
from zoo import checkpointed, language_loss, language_model

from lowmem.models import gpt2, llama
from lowmem.optim import AdaLomo, Lomo

STEPS = 50


def build(make, dtype, **settings):
    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_head=4, n_embd=16, vocab_size=11, block_size=8)
    extra = dict(n_hidden=24, n_kv_head=2) if make is llama else dict(bias=True)
    return make.build(**(sizes | extra | settings)).to(dtype)


# -- LOMO: equal ----------------------------------------------------------------------------------------------------------


class OfficialRun:
    """The official LOMO or AdaLomo behind the interface of ours; `limit` runs its norm pass over the kept graph."""

    def __init__(self, optimizer, lr, limit=None):
        self.optimizer, self.lr, self.limit = optimizer, lr, limit

    def train(self, loss):
        if self.limit is not None:
            self.optimizer.grad_norm(loss)
        self.optimizer.fused_backward(loss, self.lr)


def lomo_race(ours, model, theirs, other, tolerance, loss=language_loss):
    for step in range(STEPS):
        zoo.apply(ours, loss(model, step))
        theirs.train(loss(other, step))
    if tolerance == 0:
        assert zoo.same(zoo.snapshot(model), zoo.snapshot(other))
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_lomo_equals_the_official_one_bit_for_bit(make):
    model = build(make, torch.float32)
    other = copy.deepcopy(model)
    lomo_race(Lomo(model, lr=0.1), model, OfficialRun(OfficialLomo(other, lr=0.1), 0.1), other, 0)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_lomo_with_norm_and_value_clip_and_decay_equals_the_official_one(make):
    model = build(make, torch.float32)
    other = copy.deepcopy(model)
    theirs = OfficialLomo(other, lr=0.1, clip_grad_norm=0.05, clip_grad_value=0.01, weight_decay=0.1)
    ours = Lomo(model, lr=0.1, max_grad_norm=0.05, clip_value=0.01, weight_decay=0.1)
    lomo_race(ours, model, OfficialRun(theirs, 0.1, 0.05), other, 1e-6)


def test_lomo_in_bf16_equals_the_official_one():
    model = build(llama, torch.bfloat16)
    other = copy.deepcopy(model)
    lomo_race(Lomo(model, lr=0.1), model, OfficialRun(OfficialLomo(other, lr=0.1), 0.1), other, 0)


@pytest.fixture
def no_cuda(monkeypatch):
    """The official AdaLomo sends its state to a GPU; here that stays where it is."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *a, **k: self)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_adalomo_equals_the_official_one(make, no_cuda):
    no_biases = (
        dict(bias=False) if make is gpt2 else {}
    )  # a key bias has gradient zero, whose rounding noise is scaled up
    model = build(make, torch.float32, **no_biases)
    other = copy.deepcopy(model)
    theirs = OfficialAdaLomo(other, lr=1e-2, weight_decay=0.1)
    lomo_race(AdaLomo(model, lr=1e-2, weight_decay=0.1), model, OfficialRun(theirs, 1e-2), other, 1e-5)


# -- LOMO: where the official code is wrong -------------------------------------------------------------------------------


def test_a_plain_backward_updates_weights_there_and_is_refused_here():
    model = language_model()
    other = copy.deepcopy(model)
    before = zoo.snapshot(model)
    OfficialLomo(other, lr=0.1)
    language_loss(other, 0).backward()
    assert not zoo.same(before, zoo.snapshot(other))
    assert sum(p.grad is not None for p in other.parameters()) == 1  # and one gradient is left over
    ours = Lomo(model, lr=0.1)
    with pytest.raises(RuntimeError, match=r"call opt\.backward\(loss\)"):
        language_loss(model, 0).backward()
    assert zoo.same(before, zoo.snapshot(model))
    zoo.apply(ours, language_loss(model, 0))
    assert not zoo.same(before, zoo.snapshot(model))


def test_two_gradients_are_alive_there_and_one_here():
    model = language_model()
    other = copy.deepcopy(model)
    counts = {"ours": 0, "theirs": 0}

    def count(key, parameters):
        parameters = list(parameters)

        def hook(g):  # a tensor hook holds one gradient that no .grad shows yet
            counts[key] = max(counts[key], 1 + sum(p.grad is not None for p in parameters))

        for p in parameters:
            p.register_hook(hook)

    count("theirs", other.parameters())
    OfficialLomo(other, lr=0.1).fused_backward(language_loss(other, 0), 0.1)
    count("ours", model.parameters())
    zoo.apply(Lomo(model, lr=0.1), language_loss(model, 0))
    assert counts == {"ours": 1, "theirs": 2}


def test_the_loss_scale_never_grows_there_and_grows_here(monkeypatch):
    from lowmem.optim.core import loss_scale

    monkeypatch.setattr(loss_scale, "WINDOW", 2)
    model = zoo.net(torch.float16)
    other = copy.deepcopy(model)
    theirs = OfficialLomo(other, lr=1e-3, clip_grad_norm=1.0, loss_scale_args=dict(init_scale=8.0, scale_window=2))
    ours = Lomo(model, lr=1e-3, max_grad_norm=1.0, loss_scale="dynamic")
    ours.scale = 8.0
    for step in range(6):
        loss = other(zoo.batch(step, torch.float16))
        theirs.grad_norm(loss)
        theirs.fused_backward(loss, 1e-3)
        zoo.advance(ours, model, step)
    assert theirs.loss_scaler.loss_scale == 8.0
    assert ours.scale == 64.0


def test_overflow_needs_a_process_group_there_and_not_here():
    model = zoo.net(torch.float16)
    other = copy.deepcopy(model)
    theirs = OfficialLomo(other, lr=1e-3, clip_grad_norm=1.0)
    with pytest.raises((ValueError, RuntimeError), match="process group"):
        theirs.grad_norm(other(zoo.batch(0, torch.float16)) * float("inf"))
    ours = Lomo(model, lr=1e-3, loss_scale="dynamic")
    zoo.apply(ours, model(zoo.batch(0, torch.float16)) * float("inf"))
    assert ours.skipped


def test_reentrant_checkpoints_that_share_a_weight_give_wrong_weights_there_and_are_refused_here():
    from torch.utils.checkpoint import checkpoint

    def loss(model):
        x = torch.ones(2, 4, requires_grad=True)
        return checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True).square().mean()

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    theirs, ours = copy.deepcopy(plain), copy.deepcopy(plain)
    loss(plain).backward()
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    OfficialLomo(theirs, lr=0.5).fused_backward(loss(theirs), 0.5)
    assert not torch.allclose(theirs[0].weight, plain[0].weight, atol=1e-4)
    before = zoo.snapshot(ours)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        Lomo(ours, lr=0.5).backward(loss(ours))
    assert zoo.same(before, zoo.snapshot(ours))


def test_plain_checkpoints_agree_with_the_official_one():
    model = language_model()
    other = copy.deepcopy(model)
    theirs = OfficialRun(OfficialLomo(other, lr=0.1), 0.1)
    lomo_race(Lomo(model, lr=0.1), model, theirs, other, 0, loss=checkpointed(False))


def test_adalomo_fails_on_convolutions_and_scalars_there_and_works_here(no_cuda):
    model = zoo.net()
    other = copy.deepcopy(model)
    with pytest.raises((RuntimeError, IndexError)):
        OfficialAdaLomo(other, lr=1e-2).fused_backward(other(zoo.batch(0)), 1e-2)
    before = zoo.snapshot(model)
    zoo.advance(AdaLomo(model, lr=1e-2), model, 0)
    after = zoo.snapshot(model)
    assert all(not torch.equal(before[k], after[k]) and after[k].isfinite().all() for k in before)


def test_adalomo_state_is_missing_from_the_official_state_dict_and_present_in_ours(no_cuda):
    model = build(llama, torch.float32)
    other = copy.deepcopy(model)
    theirs, ours = OfficialAdaLomo(other, lr=1e-2), AdaLomo(model, lr=1e-2)
    theirs.fused_backward(language_loss(other, 0), 1e-2)
    zoo.apply(ours, language_loss(model, 0))
    assert not theirs.state_dict()["state"]
    assert len(ours.state_dict()["state"]) == len(list(model.parameters()))
