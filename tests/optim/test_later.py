"""What changes after an optimizer was built: weights thawed, added, replaced, bound anew; copies; reset state; schedules."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
import zoo
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from lowmem.optim import SGD, SM3, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lomo

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)
FUSED = [Lomo, AdaLomo, lambda model: FusedBackward(AdamMini(model))]


@every
def test_a_thawed_weight_trains_as_if_it_had_never_been_frozen(case):
    thawed, plain = zoo.net(), zoo.net()
    thawed.conv.requires_grad_(False)
    ours, whole = case.build(thawed), case.build(plain)
    for step in range(3):
        data = zoo.batch(step)
        zoo.apply(ours, thawed(data))
        zoo.apply(whole, (plain.linear(data[:, :3]) * plain.scale).tanh().square().mean())
    thawed.conv.requires_grad_(True)
    zoo.train(ours, thawed, 3, start=3)
    zoo.train(whole, plain, 3, start=3)
    for p, q in zip(thawed.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None or case.fused is False for p in thawed.parameters())


@every
def test_built_while_all_is_frozen_it_warns_and_trains_what_is_thawed(case):
    model = zoo.net().requires_grad_(False)
    with pytest.warns(UserWarning, match="no trainable parameter"):
        optimizer = case.build(model)
    model.requires_grad_(True)
    before = zoo.snapshot(model)
    zoo.train(optimizer, model, 1)
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


@every
def test_frozen_weights_have_no_state_and_a_resume_with_other_frozen_weights_goes_on(case):
    model, optimizer = zoo.trained(case, 2)
    frozen = zoo.net()
    frozen.load_state_dict(model.state_dict())
    frozen.linear.requires_grad_(False)
    resumed = case.build(frozen)
    assert resumed.state_bytes() == 0
    resumed.load_state_dict(optimizer.state_dict())
    model.linear.requires_grad_(False)
    zoo.train(optimizer, model, 2, start=2)
    zoo.train(resumed, frozen, 2, start=2)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(frozen))


def test_a_state_saved_without_the_frozen_weights_loads_by_name():
    model, other = zoo.net(), zoo.net()
    trained = [(name, p) for name, p in model.named_parameters() if name.startswith("linear")]
    partly = AdamMini([{"params": trained}], model=model)
    zoo.apply(partly, model.linear(torch.ones(1, 3)).sum())
    other.conv.requires_grad_(False)
    other.scale.requires_grad_(False)
    whole = AdamMini(other)
    whole.load_state_dict(partly.state_dict())
    assert torch.equal(whole.state[other.linear.bias]["exp_avg"], partly.state[model.linear.bias]["exp_avg"])
    other.scale.requires_grad_(True)
    with pytest.raises(ValueError, match="scale is not in the saved state"):
        whole.load_state_dict(partly.state_dict())


@every
@pytest.mark.parametrize("kind", ["layer", "parameter"])
def test_what_comes_into_the_model_is_named_at_the_next_step(case, kind):
    model, optimizer = zoo.trained(case, 1)
    if kind == "layer":
        model.extra = nn.Linear(2, 2)
    else:
        model.extra = nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match=r"extra.*none of its groups.*add_param_group"):
        zoo.train(optimizer, model, 1, start=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.train(optimizer, model, 1, start=2)  # said once


def test_a_weight_that_came_frozen_is_named_when_it_is_thawed():
    model, optimizer = zoo.trained(zoo.ALL[0], 1)
    model.extra = nn.Linear(2, 2).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.train(optimizer, model, 1)
    model.extra.requires_grad_(True)
    with pytest.warns(UserWarning, match="extra.weight and 1 more"):
        zoo.train(optimizer, model, 1)


def test_weights_left_out_on_purpose_are_not_spoken_of():
    model = zoo.net()
    optimizer = AdamMini([{"params": list(model.linear.parameters())}], model=model)
    model.scale = nn.Parameter(model.scale.detach()).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.train(optimizer, model, 2)


@every
def test_a_replaced_weight_is_refused_at_the_next_step(case):
    model, optimizer = zoo.trained(case, 5)
    model.conv.weight = nn.Parameter(model.conv.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"conv\.weight: was replaced"):
        zoo.train(optimizer, model, 1)


@every
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_know_their_model(case, how):
    model = zoo.net()
    model.conv.requires_grad_(False)
    optimizer = case.build(model)
    zoo.train(optimizer, model, 1)
    other, copied = how((model, optimizer))
    for net, o in ((model, optimizer), (other, copied)):
        net.conv.requires_grad_(True)
        zoo.train(o, net, 1, start=1)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(other))
    other.conv.weight = nn.Parameter(other.conv.weight.detach())
    with pytest.raises(RuntimeError, match=r"conv\.weight: was replaced"):
        zoo.train(copied, other, 1)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_cuts_a_thawed_projection_as_the_original_does(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4)

    globals()["Net"], Net.__qualname__ = Net, "Net"
    model = Net()
    model.attention.in_proj_weight.requires_grad_(False)
    optimizer = AdamMini(model)
    alone = how(optimizer)
    _, copied = how((model, optimizer))
    for o in (optimizer, alone, copied):
        p = next(p for p in o.param_groups[0]["params"] if p.shape == (48, 16))
        assert o.blocks(p).count == 4 + 4 + 16


def test_a_predicate_without_a_name_does_not_make_an_optimizer_unpicklable():
    model = zoo.net()
    optimizer = AdamW(model, weight_decay=0.1, no_decay=lambda name, p: p.ndim < 2)
    again = pickle.loads(pickle.dumps(optimizer))
    assert [g["weight_decay"] for g in again.param_groups] == [0.1, 0.0]
    with pytest.raises(RuntimeError, match="no_decay was a lambda or local function"):
        again.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert copy.deepcopy(optimizer)._no_decay is optimizer._no_decay


@pytest.mark.parametrize("build", FUSED, ids=["lomo", "adalomo", "adam_mini inside backward"])
def test_deleting_model_and_optimizer_frees_the_weights(build):
    model = zoo.net()
    optimizer = build(model)
    zoo.train(optimizer, model, 2)
    weights = [weakref.ref(p) for p in model.parameters()]
    del model, optimizer
    gc.collect()
    assert not any(weight() is not None for weight in weights)


@pytest.mark.parametrize("build", FUSED, ids=["lomo", "adalomo", "adam_mini inside backward"])
def test_without_its_optimizer_a_model_trains_plainly(build):
    model = zoo.net()
    optimizer = build(model)
    zoo.train(optimizer, model, 1)
    copied = copy.deepcopy(model)
    del optimizer
    gc.collect()
    for net in (model, copied):
        net(zoo.batch(0)).backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("schedule", [OneCycleLR, CyclicLR])
def test_lomo_has_no_momentum_for_a_schedule_to_find(schedule):
    model = zoo.net()
    settings = dict(max_lr=0.1, total_steps=8) if schedule is OneCycleLR else dict(base_lr=0.01, max_lr=0.1)
    with pytest.raises((ValueError, KeyError), match="momentum"):
        schedule(Lomo(model), **settings)
    optimizer = Lomo(model)
    schedule(optimizer, **settings, cycle_momentum=False)
    zoo.train(optimizer, model, 2)
    assert optimizer.state_bytes() == 0
    with pytest.raises(TypeError, match="Lomo has no setting 'momentum'"):
        Lomo(model, momentum=0.9)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_momentum_raised_after_a_first_step_equals_torchs(dampening):
    ours, theirs = zoo.net(), zoo.net()
    a, b = (cls(net.parameters(), lr=0.1, dampening=dampening) for cls, net in ((SGD, ours), (torch.optim.SGD, theirs)))
    for momentum in (0.0, 0.9, 0.9, 0.0, 0.5):
        a.param_groups[0]["momentum"] = b.param_groups[0]["momentum"] = momentum
        for optimizer, net in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            net(zoo.batch(0)).backward()
            optimizer.step()
    assert zoo.same(zoo.snapshot(ours), zoo.snapshot(theirs))


@pytest.mark.parametrize("cls, setting, key", [(SM3, "momentum", "momentum_buffer"), (Adafactor, "beta1", "exp_avg")])
def test_other_moments_switched_on_later_train(cls, setting, key):
    model = zoo.net()
    optimizer = cls(model, lr=1e-2, **({setting: 0.0} if cls is SM3 else {}))
    zoo.train(optimizer, model, 1)
    optimizer.param_groups[0][setting] = 0.9
    zoo.train(optimizer, model, 2, start=1)
    assert all(key in state for state in optimizer.state.values())
    assert all(p.isfinite().all() for p in model.parameters())


@every
def test_a_reset_of_state_and_other_groups_reach_the_rule(case):
    from collections import defaultdict

    model, optimizer = zoo.trained(case, 3)
    optimizer.state = defaultdict(dict)
    zoo.train(optimizer, model, 1, start=3)
    assert {state["step"].item() for state in optimizer.state.values()} == {1.0}
    assert all(entry["step"] == 1.0 for entry in optimizer.state_dict()["state"].values())
    optimizer.state = defaultdict(dict)  # momentum of updates would go on moving
    optimizer.param_groups = [{**optimizer.param_groups[0], "lr": 0.0}]
    before = zoo.snapshot(model)
    zoo.train(optimizer, model, 1, start=4)
    assert zoo.same(before, zoo.snapshot(model))


def test_a_second_moment_of_another_size_is_refused_by_name():
    model = zoo.language_model()
    for wrap in (lambda rule: rule, FusedBackward):
        optimizer = wrap(AdamMini(model, lr=1e-3))
        zoo.apply(optimizer, zoo.language_loss(model, 0))
        p = dict(model.named_parameters())["blocks.0.attention.wq.weight"]
        optimizer.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        with pytest.raises(RuntimeError, match=r"blocks\.0\.attention\.wq\.weight: exp_avg_sq has 256 elements, not 2"):
            zoo.apply(optimizer, zoo.language_loss(model, 1))


@every
def test_weights_bound_to_other_storage_go_on_training(case):
    model, plain = zoo.net(), zoo.net()
    a, b = case.build(model), case.build(plain)
    for step in range(3):
        vector_to_parameters(parameters_to_vector(model.parameters()).detach().clone(), model.parameters())
        zoo.advance(a, model, step)
        zoo.advance(b, plain, step)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(plain))


@every
def test_step_counts_stay_on_the_cpu_whatever_the_default_device(case):
    model = zoo.net()
    data = zoo.batch(0)
    optimizer = case.build(model)
    loss = model(data)
    with torch.device("meta"):
        zoo.apply(optimizer, loss)
    assert all(state["step"].device.type == "cpu" for state in optimizer.state.values())


@every
def test_a_lazy_layer_is_taken_before_its_first_call(case):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.LazyLinear(4), nn.Linear(4, 1)

        def forward(self, x):
            return self.last(self.first(x).tanh()).square().mean()

    model = Lazy()
    optimizer = case.build(model)
    for _ in range(2):
        zoo.apply(optimizer, model(torch.ones(3, 5)))
    state = optimizer.state[model.first.weight]
    assert state["step"] == 2 and optimizer.state[model.last.weight]["step"] == 2


def test_no_decay_patterns_are_checked_by_name():
    model = zoo.net()
    for patterns, words in (
        (["bias", "LayerNorm.weight"], r"'bias' matches no parameter; .*'\*bias\*'"),
        (["*.bais"], r"'\*\.bais' matches no parameter; names look like 'linear.weight'"),
        ("*.bais", r"'\*\.bais' matches no parameter"),
        (["*.bias", "*"], r"'\*' matches every parameter"),
    ):
        for cls in (AdamMini, AdamW, Lomo):
            with pytest.raises(ValueError, match=words):
                cls(model, weight_decay=0.1, no_decay=patterns)
    for named in (model, torch.compile(model), nn.Sequential(model)):
        start = "0." if isinstance(named, nn.Sequential) else ""
        for chosen in (start + "linear.bias", [start + "linear.bias"], "*.bias"):
            optimizer = AdamW(named, weight_decay=0.1, no_decay=chosen)
            assert [len(g["params"]) for g in optimizer.param_groups] == [3, 1]
    later = AdamMini(model, weight_decay=0.0, no_decay=["*.bias"])
    assert [len(g["params"]) for g in later.param_groups] == [3, 1]


def test_a_rate_in_a_tensor_of_one_element_trains():
    for cls in (SGD, Lomo, AdamW, AdamMini):
        a, b = zoo.net(), zoo.net()
        zoo.train(cls(a, lr=torch.tensor([0.25])), a, 2)
        zoo.train(cls(b, lr=0.25), b, 2)
        assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))
