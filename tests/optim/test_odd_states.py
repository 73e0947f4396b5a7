"""States, scales and copies that others tried: each is right, or refused by name, and no weight becomes nan in silence."""

import copy
import pickle

import pytest
import torch
import zoo
from torch import nn

from lowmem.compat import Lomo as OfficialLomo
from lowmem.optim import SGD, AdaLomo, AdamMini, AdamW, FusedBackward, Lion, Lomo

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
