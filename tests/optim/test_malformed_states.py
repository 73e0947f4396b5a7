"""States that no optimizer saved, or that somebody has changed: one line that names what is wrong; nothing is taken over."""

import copy
import math
import warnings

import compiler
import pytest
import torch
from torch import nn

from lowmem.optim import AdamMini, AdamW, FusedBackward, Lion, Lomo, convert


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(make, steps=2):
    """(model, optimizer) after a few steps."""
    model = net()
    optimizer = make(model)
    step(model, optimizer, steps)
    return model, optimizer


def step(model, optimizer, count=1):
    for _ in range(count):
        model(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def coded(model):
    return AdamMini(model, lr=1e-2, state_dtype="int8")


@pytest.mark.parametrize("cls", [AdamMini, AdamW, Lion])
@compiler.both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int16])
def test_codes_that_were_cast_are_not_trained_on(cls, way, dtype, monkeypatch):
    if way == "stages":
        compiler.without_kernel(monkeypatch)
    model, optimizer = trained(lambda model: cls(model, lr=1e-2, state_dtype="int8"))
    state = optimizer.state[model[0].weight]
    state["exp_avg"] = state["exp_avg"].to(dtype)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"0\.weight: exp_avg was cast to torch\.\w+, but belongs to 8-bit codes"):
        step(model, optimizer)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def first(key, change):
    """A change of one entry of the first parameter's state."""
    return lambda saved: saved["state"][0].update({key: change(saved["state"][0][key])})


MALFORMED = {
    "codes of another sign": (first("exp_avg", lambda q: q.to(torch.uint8)), "uint8, expected floating-point"),
    "scales below 0": (first("exp_avg_scale", lambda s: -s), "with scales below 0"),
    "scales of another shape": (first("exp_avg_scale", lambda s: s[None]), "scales of shape"),
    "scales in words": (first("exp_avg_scale", lambda s: "x"), "with scales that are str"),
    "step nan": (first("step", lambda t: math.nan), "step count is nan"),
    "step inf": (first("step", lambda t: math.inf), "step count is inf"),
    "step below 0": (first("step", lambda t: -5), "step count is -5"),
    "several steps": (first("step", lambda t: torch.ones(3)), r"step count is \(3,\)"),
    "step in words": (first("step", lambda t: "x"), "step count is 'x'"),
    "an entry that is nothing": (lambda saved: saved["state"].update({0: None}), "one dictionary for each parameter"),
    "a list of entries": (lambda saved: saved.update(state=[]), "one dictionary for each parameter"),
    "a group of nothing": (lambda saved: saved.update(param_groups=[{}]), "each with a list of 'params'"),
    "groups of nothing": (lambda saved: saved.update(param_groups=None), "each with a list of 'params'"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_state_is_refused_in_one_line(how):
    change, message = MALFORMED[how]
    saved = copy.deepcopy(trained(coded)[1].state_dict())
    change(saved)
    _, fresh = trained(coded)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        fresh.load_state_dict(saved)
    assert "\n" not in str(caught.value)
    after = fresh.state_dict()
    assert all(torch.equal(after["state"][i][k], v) for i, entry in before["state"].items() for k, v in entry.items())


@pytest.mark.parametrize("fused", [None, {"scale": "x"}, {"scale": 0}, {"scale": math.nan}, {"clean_steps": -1}])
def test_a_malformed_loss_scale_is_refused_in_one_line(fused):
    optimizer = FusedBackward(AdamMini(net(), lr=1e-2))
    with pytest.raises(ValueError, match=r"loss scale|'fused' in the state"):
        optimizer.load_state_dict({**optimizer.state_dict(), "fused": fused})


@pytest.mark.parametrize("given", [None, [], {"state": [], "param_groups": []}])
def test_convert_refuses_what_is_no_state(given):
    with pytest.raises(ValueError, match="state"):
        convert(given, to=AdamW(net(), lr=1e-2))


@pytest.mark.parametrize("to", [None, torch.optim.AdamW(net().parameters())])
def test_convert_refuses_optimizers_of_others(to):
    _, optimizer = trained(lambda model: AdamMini(model, lr=1e-2))
    with pytest.raises(ValueError, match=r"`to` is an optimizer of lowmem\.optim, not "):
        convert(optimizer.state_dict(), to=to)


def test_convert_says_of_a_rule_without_second_moments_what_it_keeps():
    _, optimizer = trained(lambda model: AdamMini(model, lr=1e-2))
    with pytest.raises(ValueError, match="Lion keeps exp_avg and cannot go on"):
        convert(optimizer.state_dict(), to=Lion(net(), lr=1e-2))
    with pytest.raises(ValueError, match="AdamW needs one for each weight"):
        convert(optimizer.state_dict(), to=AdamW(net(), lr=1e-2))


@pytest.mark.parametrize("kind", ["Adam", "RAdam", "NAdam"])
@pytest.mark.parametrize("cls", [AdamW, AdamMini])
def test_decay_in_the_gradient_does_not_become_decay_of_weights(kind, cls):
    _, theirs = trained(lambda model: getattr(torch.optim, kind)(model.parameters(), lr=1e-2, weight_decay=0.3))
    with pytest.raises(ValueError, match=r"weight_decay=0\.3 added to the gradient"):
        cls(net(), lr=1e-2).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    ("theirs", "source"),
    [("Adamax", "torch.optim.Adamax"), ("NAdam", "torch.optim.NAdam"), ("Adadelta", "torch.optim.Adadelta")],
)
def test_the_refusal_names_whose_state_it_is(theirs, source):
    _, optimizer = trained(lambda model: getattr(torch.optim, theirs)(model.parameters(), lr=1e-2))
    with pytest.raises(ValueError, match=f"the state is that of {source}"):
        AdamW(net(), lr=1e-2).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("make", [AdamMini, Lomo])
def test_weights_in_no_group_that_are_thawed_are_named(make):
    model = net()
    model[0].requires_grad_(False)
    optimizer = make([{"params": [p for p in model.parameters() if p.requires_grad]}], model=model, lr=1e-2)

    def once():
        loss = model(torch.randn(3, 8)).square().sum()
        optimizer.backward(loss) if make is Lomo else loss.backward()
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once()  # frozen on purpose: nothing to say
    model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0\.weight and 1 more: was added to the model, or unfrozen.*does not train"):
        once()
