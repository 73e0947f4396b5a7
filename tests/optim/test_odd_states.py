"""States, scales and copies that others tried: each is right, or refused by name, and no weight becomes nan in silence."""

import copy
import pickle

import pytest
import torch
import zoo
from torch import nn

from lowmem.compat import Lomo as OfficialLomo
from lowmem.optim import CAME, SGD, SM3, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lamb, Lion, Lomo

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [AdamMini, AdamW, SGD, Lion, Lomo])
@pytest.mark.parametrize("change", ["mask", "clamp", "zeros"])
def test_corrected_weights_that_are_set_to_zero_go_on_from_zero(make, change):
    torch.manual_seed(0)
    model = nn.Linear(6, 8).to(torch.bfloat16)
    optimizer = make(model, lr=0.01, rounding="corrected")
    mask = torch.rand(8, 6) > 0.3
    for _ in range(6):
        zoo.apply(optimizer, model(X.bfloat16()).float().square().mean())
        with torch.no_grad():
            if change == "mask":
                model.weight.mul_(mask)
            elif change == "clamp":
                model.weight.clamp_(min=0)
            else:
                model.weight.zero_()
    zoo.apply(optimizer, model(X.bfloat16()).float().square().mean())
    assert model.weight.isfinite().all() and model.weight.abs().max() < 2


@pytest.mark.parametrize(("wanted", "scale"), [(None, 1.0), (8.0, 8.0)])
def test_a_constant_loss_scale_stays_when_the_state_of_a_dynamic_one_is_loaded(wanted, scale):
    model = nn.Linear(6, 3)
    saved = Lomo(model, lr=1e-4, loss_scale="dynamic")
    zoo.apply(saved, model(X).square().mean())
    loaded = Lomo(copy.deepcopy(model), lr=1e-4, loss_scale=wanted)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.scale == scale
    again = Lomo(copy.deepcopy(model), lr=1e-4, loss_scale="dynamic")
    saved.scale = 4.0
    again.load_state_dict(saved.state_dict())
    assert again.scale == 4.0
    again.load_state_dict(loaded.state_dict())
    assert again.scale == 4.0  # a constant scale says nothing of a dynamic one


@pytest.mark.parametrize("make", [Lomo, AdaLomo, lambda m, lr: FusedBackward(AdamMini(m, lr=lr), max_grad_norm=1.0)])
def test_what_a_scheduler_has_wrapped_is_copied_and_pickled_and_each_steps_itself(make):
    model = zoo.net()
    optimizer = make(model, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for step, copied in enumerate((copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both)))):
        twin, other = copied((model, optimizer))
        for m, o in ((model, optimizer), (twin, other)):
            zoo.advance(o, m, step)
        assert zoo.same(zoo.snapshot(model), zoo.snapshot(twin))


def test_the_official_lomo_in_float16_goes_on_with_its_scale():
    torch.manual_seed(0)
    model, inputs = nn.Linear(6, 3).half(), X.half()

    def loss(m):
        return m(inputs).square().mean()

    optimizer = OfficialLomo(model, lr=0.1)
    for _ in range(30):
        optimizer.fused_backward(loss(model), 0.1)
    again = copy.deepcopy(model)
    resumed = OfficialLomo(again, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.scale == optimizer.scale < 2.0**32 and resumed.clip_grad_norm == 1.0
    for m, o in ((model, optimizer), (again, resumed)):
        o.fused_backward(loss(m), 0.1)
        assert not o.skipped and o.loss_scaler.has_overflow_serial is False
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(again))


def test_scripts_that_ask_the_official_lomo_for_its_scaler_go_on():
    model = zoo.net()
    optimizer = OfficialLomo(model, lr=0.1, clip_grad_norm=1.0)
    loss = model(zoo.batch(0))
    optimizer.grad_norm(loss)
    assert not optimizer.zero3_enabled
    assert not (optimizer.loss_scaler and optimizer.loss_scaler.has_overflow_serial)
    optimizer.fused_backward(loss, 0.1)


def test_the_state_of_muon_is_refused_by_name():
    model = nn.Linear(4, 4, bias=False)
    muon = torch.optim.Muon(model.parameters(), lr=0.01)
    model(torch.ones(1, 4)).sum().backward()
    muon.step()
    with pytest.raises(ValueError, match=r"torch\.optim\.Muon"):
        SGD(nn.Linear(4, 4, bias=False), lr=0.5).load_state_dict(muon.state_dict())


@pytest.mark.parametrize("rule", [AdamW, AdamMini, Lion])
def test_a_gradient_that_is_read_with_the_other_sign_moves_weights_as_in_torch(rule):
    found = []
    for grad in (torch._neg_view(torch.ones(4)), -torch.ones(4)):
        p = nn.Parameter(torch.zeros(4))
        p.grad = grad
        rule([("p", p)], lr=0.1, weight_decay=0.0).step()
        found.append(p.detach())
    assert torch.equal(*found) and (found[0] > 0).all()


@pytest.mark.parametrize("rule", [AdamW, AdamMini, Lion, Lamb, CAME, Adafactor, SM3, AdaLomo])
def test_settings_of_another_rule_without_a_state_are_refused(rule):
    model = nn.Linear(3, 3)
    saved = torch.optim.SGD(model.parameters(), lr=0.5).state_dict()
    with pytest.raises(ValueError, match="nothing but settings, among them dampening"):
        rule(model).load_state_dict(saved)


@pytest.mark.parametrize("rule", [AdamW, AdamMini, Lamb, CAME])
def test_a_moment_of_another_size_is_seen_before_any_weight_moves(rule):
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    optimizer = rule(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.state[model[1].weight]["exp_avg"] = torch.zeros(3, 3)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))


def test_patterns_that_exempt_everything_together_are_refused():
    with pytest.raises(ValueError, match="'weight', 'bias' together match every parameter"):
        AdamW(nn.Linear(2, 2), no_decay=["weight", "bias"])


def test_a_fused_optimizer_is_copied_with_its_model_only():
    with pytest.raises(TypeError, match="copy it with its model"):
        copy.copy(Lomo(nn.Linear(2, 2)))
