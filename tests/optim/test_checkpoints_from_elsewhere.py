"""States that another optimizer, another version or a tool saved: completed where they can be, else refused in one line."""

import copy

import pytest
import torch
import zoo
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lowmem.optim import SGD, Adafactor, AdaLomo, AdamMini, AdamW, FusedBackward, Lomo

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


def torch_trained(cls, dtype=torch.float32, **settings):
    """(model, torch's optimizer) after three steps."""
    model = zoo.net(dtype)
    optimizer = cls(model.parameters(), **settings)
    for step in range(3):
        optimizer.zero_grad()
        model(zoo.batch(step, dtype)).backward()
        optimizer.step()
    return model, optimizer


def onwards(ours, model, theirs, other, rtol=1e-5, atol=1e-7):
    for step in range(3, 6):
        for optimizer, net in ((ours, model), (theirs, other)):
            zoo.apply(optimizer, net(zoo.batch(step, next(net.parameters()).dtype)))
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_torchs_adamw_goes_on_as_ours_in_every_dtype(dtype):
    model, theirs = torch_trained(torch.optim.AdamW, dtype, lr=1e-2, weight_decay=0.1)
    other = copy.deepcopy(model)
    ours = AdamW(other, lr=1.0)
    ours.load_state_dict(theirs.state_dict())
    loose = {"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {}
    onwards(ours, other, theirs, model, **loose)
    assert ours.param_groups[0]["lr"] == 1e-2 and "fused" not in ours.param_groups[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_torchs_sgd_goes_on_as_ours_and_only_a_plain_one_as_lomo(momentum):
    model, theirs = torch_trained(torch.optim.SGD, lr=0.1, momentum=momentum)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    ours, lomo = SGD(other), Lomo(third)
    ours.load_state_dict(theirs.state_dict())
    if momentum:
        with pytest.raises(ValueError, match="SGD with momentum, which keeps momentum_buffer; Lomo keeps nothing"):
            lomo.load_state_dict(theirs.state_dict())
    else:
        lomo.load_state_dict(theirs.state_dict())
        assert "momentum" not in lomo.param_groups[0]
    onwards(ours, other, theirs, model)


def test_adamw_changes_over_to_adam_mini_by_block_means():
    model = zoo.language_model()
    adam = AdamW(model, lr=1e-3)
    for step in range(3):
        zoo.apply(adam, zoo.language_loss(model, step))
    for source in (adam.state_dict(), _as_torch(model, adam)):
        mini = AdamMini(model, lr=1e-3)
        mini.load_state_dict(source)
        for p in model.parameters():
            v, blocks = adam.state[p]["exp_avg_sq"], mini.blocks(p)
            found = mini.state[p]["exp_avg_sq"]
            if blocks.kind in ("token", "neuron"):
                want = v.movedim(blocks.axis, 0).flatten(1).mean(1)
            elif blocks.kind == "head":
                want = v.reshape(blocks.count, -1).mean(1)
            else:
                want = v if blocks.kind == "coordinate" else v.mean().view(1)
            torch.testing.assert_close(found, want, rtol=1e-5, atol=0)
            assert mini.state[p]["step"] == 3
    mini = AdamMini(model, lr=1e-3)
    mini.load_state_dict(adam.state_dict())
    zoo.apply(mini, zoo.language_loss(model, 3))
    assert all(p.isfinite().all() for p in model.parameters())


def _as_torch(model, adam):
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for p in model.parameters():
        theirs.state[p] = {key: value.clone() for key, value in adam.state[p].items()}
    return theirs.state_dict()


def test_a_statistic_other_than_the_mean_cannot_take_an_adams_moments():
    model, theirs = torch_trained(torch.optim.AdamW, lr=1e-2)
    mini = AdamMini(zoo.language_model(), reduce="max")
    with pytest.raises(ValueError, match="parameters"):
        mini.load_state_dict(theirs.state_dict())
    largest = AdamMini(model, reduce="max")
    with pytest.raises(ValueError, match=r"saved exp_avg_sq \(of an Adam\) has shape .*, AdamMini expects"):
        largest.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    "make, source",
    [
        (lambda p: torch.optim.Adafactor(p, lr=1e-2), "torch.optim.Adafactor"),
        (lambda p: torch.optim.RMSprop(p, lr=1e-2), "torch.optim.RMSprop"),
        (lambda p: torch.optim.Adagrad(p, lr=1e-2), "torch.optim.Adagrad"),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True), "amsgrad=True"),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, maximize=True), "maximize=True"),
    ],
)
@pytest.mark.parametrize("cls", [AdamMini, AdamW, AdaLomo, lambda m: FusedBackward(AdamMini(m))])
def test_other_optimizers_are_refused_when_loaded_with_both_names(make, source, cls):
    model, theirs = torch_trained(lambda p: make(list(p)))
    optimizer = cls(model)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=source.replace(".", r"\.")) as caught:
        optimizer.load_state_dict(theirs.state_dict())
    assert "\n" not in str(caught.value)
    assert optimizer.state_dict() == before


def test_the_official_adam_minis_state_is_refused_by_its_name():
    model, optimizer = zoo.trained(zoo.ALL[3], 1)
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry["m"], entry["vmean"] = entry.pop("exp_avg"), entry.pop("exp_avg_sq")
    with pytest.raises(
        ValueError, match="the official adam_mini, which keeps m, vmean; AdamMini keeps exp_avg, exp_avg_sq"
    ):
        AdamMini(model).load_state_dict(saved)


@every
@pytest.mark.parametrize("step", ["whole number", "tensor of a whole number", "on the group"])
def test_settings_that_an_older_version_did_not_save_and_step_counts_of_other_kinds_are_completed(case, step):
    model, optimizer = zoo.trained(case, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in group.keys() - {"params", "lr", "state_code"}:
            del group[key]
        group |= {"step": 2} if step == "on the group" else {}
    for entry in saved["state"].values():
        if step == "on the group":
            del entry["step"]
        else:
            entry["step"] = 2 if step == "whole number" else torch.tensor(2)
    other = copy.deepcopy(model)
    again = case.build(other)
    again.load_state_dict(saved)
    zoo.train(optimizer, model, 2, start=2)
    zoo.train(again, other, 2, start=2)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(other))
    assert all(state["step"].dtype == torch.float32 for state in again.state.values())


def test_a_missing_step_count_that_matters_is_refused():
    model, optimizer = zoo.trained(zoo.ALL[0], 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        del entry["step"]
    with pytest.raises(ValueError, match="no step count, which AdamW needs"):
        AdamW(model).load_state_dict(saved)


@every
def test_what_a_load_hook_returns_is_what_is_loaded(case):
    """torch's documented way to load by name, for parameters in another order; here all of one shape."""

    def net():
        torch.manual_seed(0)
        return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abc"})

    def loss(model, k):
        return sum((i + 1) * layer(zoo.batch(k)[:, :3]).square().mean() for i, layer in enumerate(model.values()))

    first, second = net(), net()
    one, other = case.build(first), zoo.loose(case, list(second.named_parameters())[::-1])
    zoo.apply(one, loss(first, 0))
    second.load_state_dict(first.state_dict())
    seen = []

    def by_name(optimizer, state_dict):
        group = state_dict["param_groups"][0]
        names = [n for g in optimizer.param_groups for n in g.get("param_names", ())]
        order = {name: i for i, name in zip(group["params"], group.pop("param_names"))}
        group.pop("blocks", None)
        seen.append("before")
        return {"state": {i: state_dict["state"][order[n]] for i, n in enumerate(names) if order[n] in state_dict["state"]},
                "param_groups": [{**group, "params": list(range(len(names)))}],
                **{k: v for k, v in state_dict.items() if k == "fused"}}  # fmt: skip

    other.register_load_state_dict_pre_hook(by_name)
    other.register_load_state_dict_post_hook(lambda _: seen.append("after"))
    other.load_state_dict(one.state_dict())
    assert seen == ["before", "after"]
    for name in "abc":
        a, b = one.state[first[name].weight], other.state[second[name].weight]
        for key in a:
            if a[key].shape == b[key].shape:
                assert torch.equal(a[key], b[key])


@every
def test_state_dict_hooks_run_and_may_return_another_dictionary(case):
    _, optimizer = zoo.trained(case, 1)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {"mine": saved})
    assert optimizer.state_dict()["mine"]["param_groups"]
    assert calls == ["before"]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "case",
    [case for case in zoo.RULES if case.name in ("adamw", "adam_mini", "sgd-nesterov")],
    ids=lambda case: case.name,
)
def test_tools_that_leave_out_frozen_weights_round_trip(case, flat):
    model, optimizer = zoo.trained(case, 2)
    model.linear.requires_grad_(False)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = copy.deepcopy(model)
    again = case.build(other)
    set_optimizer_state_dict(other, again, saved, options=options)
    zoo.train(optimizer, model, 2, start=2)
    zoo.train(again, other, 2, start=2)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(other))


@pytest.mark.parametrize("cls", [AdamW, AdamMini, Lomo, Adafactor])
def test_storage_is_that_of_the_new_optimizer_and_rates_those_of_the_saved_one(cls):
    model = zoo.net(torch.bfloat16)
    old = cls(model, lr=0.01)
    zoo.train(old, model, 1)
    new = cls(model, lr=1.0, state_dtype=torch.float32, rounding="stochastic")
    new.load_state_dict(old.state_dict())
    group = new.param_groups[0]
    assert (group["lr"], group["state_dtype"], group["rounding"]) == (0.01, torch.float32, "stochastic")
    moments = [v for state in new.state.values() for key, v in state.items() if key != "step"]
    assert all(v.dtype == torch.float32 for v in moments)


def test_what_is_no_state_is_refused():
    _, optimizer = zoo.trained(zoo.ALL[0], 1)
    with pytest.raises(ValueError, match="a dictionary with 'state' and 'param_groups'"):
        optimizer.load_state_dict({"model": {}})
