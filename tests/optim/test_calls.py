"""How users and frameworks call optimizers: closures, wrappers, groups, settings of torch's own; refusals say what to do."""

import inspect
import re
import warnings

import pytest
import torch
import zoo
from torch import nn

from lowmem import optim
from lowmem.compat import Adam_mini
from lowmem.optim import AdaLomo, AdamMini, AdamW, Lomo
from lowmem.optim.core.hyperparameters import Common
from lowmem.optim.core.rule_optimizer import RuleOptimizer


def test_a_closure_that_does_nothing_after_backward_is_a_plain_step():
    """As Lightning's manual optimization calls step()."""
    model, plain = zoo.net(), zoo.net()
    for net, closure in ((model, lambda: None), (plain, None)):
        optimizer = Lomo(net, lr=0.1)
        for step in range(2):
            optimizer.backward(net(zoo.batch(step)))
            optimizer.step(closure)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(plain))
    optimizer = Lomo(model)
    optimizer.backward(model(zoo.batch(0)))
    with pytest.raises(RuntimeError, match="call one of the two"):
        optimizer.step(lambda: model(zoo.batch(0)))


def test_a_wrapper_that_copies_attributes_reaches_the_optimizer():
    """As Lightning and Fabric wrap: a subclass made on the spot, with the attributes of the wrapped one."""
    model, plain = zoo.net(), zoo.net()
    inner = Lomo(model, lr=0.1)
    wrapper = type("LightningLomo", (Lomo,), {}).__new__(type("LightningLomo", (Lomo,), {}))
    wrapper.__dict__ = {**inner.__dict__, "_optimizer": inner}
    wrapper.backward(model(zoo.batch(0)))
    inner.step(lambda: None)
    zoo.train(Lomo(plain, lr=0.1), plain, 1)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(plain))


def test_two_optimizers_on_a_generator_and_a_discriminator_work_with_the_other_frozen():
    generator, critic = nn.Linear(3, 3), nn.Linear(3, 1)
    both = Lomo(generator, lr=0.1), Lomo(critic, lr=0.1)
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"freeze them with requires_grad_\(False\)"):
        both[0].backward(critic(generator(x)).mean())
    critic.requires_grad_(False)
    before = zoo.snapshot(critic)
    both[0].backward(critic(generator(x)).mean())
    both[0].step()
    assert zoo.same(before, zoo.snapshot(critic))


@pytest.mark.parametrize("setting", ["fused", "foreach", "capturable", "amsgrad", "maximize", "differentiable"])
def test_torchs_own_settings_are_refused_with_what_to_do(setting):
    for cls in (AdamMini, AdamW, Lomo, AdaLomo):
        with pytest.raises(TypeError, match=rf"{cls.__name__} has no setting '{setting}': .*(leave it out|-loss)"):
            cls(zoo.net(), **{setting: True})


def test_capturable_is_refused_with_the_reason_as_a_setting_and_in_a_group_and_its_absence_is_not():
    model = zoo.net()
    with pytest.raises(TypeError, match=r"a CUDA graph cannot hold a step; .* call step\(\) outside"):
        AdamMini(model, capturable=True)
    group = {"params": list(model.parameters()), "capturable": True}
    for cls in (AdamMini, AdamW, Lomo):
        with pytest.raises(ValueError, match=r"capturable=True: .*a CUDA graph cannot hold a step") as caught:
            cls([group], model=model)
        assert "\n" not in str(caught.value)
    zoo.train(AdamW([{**group, "capturable": False}], lr=1e-2), model, 1)


def test_a_state_saved_by_a_capturable_optimizer_of_torch_trains_on_as_one_that_was_not():
    def resumed(capturable):
        model = zoo.net()
        theirs = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
        zoo.train(theirs, model, 2)
        saved = theirs.state_dict()
        saved["param_groups"][0]["capturable"] = capturable
        ours = AdamW(model, lr=1e-2)
        ours.load_state_dict(saved)
        zoo.train(ours, model, 2, start=2)
        return zoo.snapshot(model)

    assert zoo.same(resumed(True), resumed(False))


def test_settings_are_checked_before_parameters_and_odd_parameters_refused_as_torch_does():
    with pytest.raises(ValueError, match="lr=-1"):
        AdamMini(None, lr=-1)
    with pytest.raises(TypeError, match="AdamMini takes a model, parameters"):
        AdamMini(None)
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="some parameters have names and some have none"):
        AdamW([("weight", weight), bias])
    with pytest.raises(TypeError, match="set have no order"):
        AdamW([{"params": {weight, bias}}])


@pytest.mark.parametrize("cls", [AdamMini, AdamW, Lomo])
def test_an_empty_group_stands_anywhere_with_and_without_a_model(cls):
    model = zoo.net()
    full = {"params": list(model.parameters()), "weight_decay": 0.1}
    for groups in ([full, {"params": []}], [{"params": []}, full], [{"params": []}, full, {"params": []}]):
        for settings in ({"model": model}, {}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer = cls([dict(group) for group in groups], **settings)
            assert len(optimizer.param_groups) == len(groups)
    optimizer = cls(model)
    optimizer.add_param_group({"params": []})
    zoo.train(optimizer, model, 1)


def test_official_calls_with_missing_sizes_or_names_are_refused_in_words():
    model = zoo.net()
    for wrong in (dict(dim=None), dict(n_heads=None), dict(dim=True)):
        with pytest.raises(ValueError, match="a whole number above 0"):
            Adam_mini(model.named_parameters(), verbose=False, **wrong)
    for given in (model.parameters(), [{"params": list(model.parameters())}]):
        with pytest.raises(ValueError, match=r"takes \(name, parameter\) pairs"):
            Adam_mini(given, verbose=False)


EVERY = sorted({"FusedBackward", "Zero1"} | {optim.find(name).__name__ for name in optim.names()})


@pytest.mark.parametrize("name", EVERY)
def test_help_explains_every_keyword(name):
    kind = getattr(optim, name)
    missing = [key for key in inspect.signature(kind).parameters if not re.search(rf"\b{key}\b", kind.__doc__)]
    assert not missing
    if "Common keywords" in kind.__doc__:
        common = RuleOptimizer.__doc__
        assert not [key for key in Common.__annotations__ if not re.search(rf"\b{key}\b", common)]


@pytest.mark.parametrize("named_first", [True, False])
def test_names_in_some_groups_alone_are_refused_as_torch_does(named_first):
    first, second = zoo.net(), zoo.net()
    groups = [{"params": list(first.named_parameters())}, {"params": list(second.parameters())}]
    for cls in (torch.optim.AdamW, optim.AdamW):
        with pytest.raises(ValueError, match=r"with/without names|some have none"):
            cls(groups if named_first else groups[::-1])


def test_a_group_added_to_the_official_signature_is_decayed_by_the_same_rule():
    model, added = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = Adam_mini(model.named_parameters(), weight_decay=0.1, dim=4, n_heads=2, verbose=False)
    optimizer.add_param_group({"params": added.named_parameters(), "lr": 0.5})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    assert [group["lr"] for group in optimizer.param_groups[2:]] == [0.5, 0.5]
    optimizer.add_param_group({"params": [("more.bias", nn.Parameter(torch.zeros(2)))], "weight_decay": 0.3})
    assert optimizer.param_groups[-1]["weight_decay"] == 0.3  # as it was asked for
