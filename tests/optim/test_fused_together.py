"""Updates inside backward together with schedulers, hooks, groups and compiled blocks; saving and copying."""

import copy
import io
import pickle
import re

import pytest
import torch
from fused_nets import batch, loss_of, net, refused, same, train_fused, train_plain, weights
from torch import nn

from lowmem.optim import (
    SGD,
    AdaLomo,
    AdamMini,
    FusedBackward,
    Lomo,
)


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(max_grad_norm=0.05), dict(loss_scale=64.0), dict(max_grad_norm=0.05, loss_scale="dynamic")],
    ids=str,
)
@pytest.mark.parametrize("reentrant", [None, True])
def test_adapters_keep_an_optimizer_of_their_own_beside_lomo(settings, reentrant):
    def adapters(model):
        return list(model.inner.parameters())

    def rest(model):
        own = {id(p) for p in adapters(model)}
        return [(n, p) for n, p in model.named_parameters() if id(p) not in own]

    plain, ours = net(), net(reentrant=reentrant)
    adam = [torch.optim.AdamW(adapters(m), lr=1e-2) for m in (plain, ours)]
    sgd, lomo = torch.optim.SGD([p for _, p in rest(plain)], lr=0.1), Lomo(rest(ours), lr=0.1, model=ours, **settings)
    for step in range(3):
        x = batch(step)
        plain(x).square().mean().backward()
        if "max_grad_norm" in settings:  # the norm of Lomo's own parameters
            nn.utils.clip_grad_norm_([p for _, p in rest(plain)], settings["max_grad_norm"])
        lomo.backward(ours(batch(step)).square().mean())
        assert same([p.grad for p in adapters(plain)], [p.grad for p in adapters(ours)], 1e-6), "once, and unscaled"
        for optimizer in (sgd, lomo, *adam):
            optimizer.step()
            optimizer.zero_grad()
    assert same(weights(plain), weights(ours), 1e-5)


def test_gradients_of_others_accumulate_as_they_would_and_inputs_keep_theirs():
    model = net()
    adapters = list(model.inner.parameters())
    lomo = Lomo(
        [p for p in model.parameters() if all(p is not a for a in adapters)], lr=0.0, max_grad_norm=0.1, loss_scale=8.0
    )
    x = batch(0)
    lomo.backward(model(x).square().mean())
    lomo.step()
    once, of_input = [p.grad.clone() for p in adapters], x.grad.clone()
    lomo.backward(model(x).square().mean())
    assert same([2 * g for g in once], [p.grad for p in adapters], 1e-6)
    assert torch.allclose(x.grad, 2 * of_input)


def test_two_fused_optimizers_on_one_loss_are_refused_before_anything_moves():
    model = net()
    first = Lomo(list(model.inner.named_parameters()), lr=0.1)
    second = Lomo([*model.shared.parameters(), *model.head.parameters()], lr=0.1)
    for optimizer in (first, second):
        refused(
            optimizer,
            model,
            RuntimeError,
            "belongs to another optimizer",
            lambda optimizer=optimizer: optimizer.backward(loss_of(model, 0)),
        )
    second.close()
    first.backward(loss_of(model, 0))


def test_gradients_can_be_asked_for_beside_the_update():
    plain, ours = net(), net()
    sgd, lomo = torch.optim.SGD(plain.parameters(), lr=0.1), Lomo(ours, lr=0.1)
    for step in range(2):  # a gradient penalty: double backward through the same weights
        losses = []
        for model in (plain, ours):
            x = batch(step)
            out = model(x).square().mean()
            (g,) = torch.autograd.grad(out, x, create_graph=True, retain_graph=True)
            losses.append(out + g.square().sum())
        losses[0].backward()
        sgd.step()
        sgd.zero_grad()
        lomo.backward(losses[1])
        lomo.step()
    assert same(weights(plain), weights(ours), 1e-6)


def test_bf16_autocast_gives_the_plain_result():
    def loss(model, step, factor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(batch(step)).float().square().mean()

    plain, ours = net(), net()
    train_plain(plain, SGD(plain, lr=0.1), clip=0.05, loss=loss)
    train_fused(ours, Lomo(ours, lr=0.1, max_grad_norm=0.05), loss=loss)
    assert same(weights(plain), weights(ours), 1e-6)


@pytest.mark.parametrize("settings", [dict(), dict(max_grad_norm=0.05)], ids=str)
@pytest.mark.parametrize("closure", [False, True], ids=["graph", "closure"])
def test_a_compiled_model_gives_the_plain_result(settings, closure):
    torch._dynamo.reset()  # a graph compiled by an earlier test would be used again
    plain, ours = net(), net()
    compiled = torch.compile(ours, backend="aot_eager")
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    lomo = Lomo(compiled, lr=0.1, **settings)
    train_fused(compiled, lomo, closure=closure)
    assert same(weights(plain), weights(ours), 1e-5)


def test_a_compiled_graph_that_gives_its_buffers_away_is_refused_where_it_would_run_twice():
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    loss_of(compiled, 0).backward()  # a first backward that keeps nothing: from now on buffers are donated
    model.zero_grad()
    lomo = Lomo(compiled, lr=0.1, max_grad_norm=0.05)
    refused(lomo, compiled, RuntimeError, "pass a closure", lambda: lomo.backward(loss_of(compiled, 0)))


@pytest.mark.parametrize("build", [lambda m: Lomo(m, lr=0.1, max_grad_norm=0.1), lambda m: AdaLomo(m, lr=1e-2),
                                   lambda m: FusedBackward(AdamMini(m, lr=1e-2), loss_scale="dynamic")])  # fmt: skip
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_bit_for_bit(how, build):
    model = net()
    fused = build(model)
    train_fused(model, fused, steps=2)
    if how == "state_dict":
        other = copy.deepcopy(model)
        again = build(other)
        stream = io.BytesIO()
        torch.save(fused.state_dict(), stream)
        stream.seek(0)
        again.load_state_dict(torch.load(stream, weights_only=True))
    elif how == "deepcopy":
        other, again = copy.deepcopy((model, fused))
    else:
        other, again = pickle.loads(pickle.dumps((model, fused)))
    train_fused(other, again)
    assert not same(weights(model), weights(other))
    train_fused(model, fused)
    assert same(weights(model), weights(other))
    for optimizer, m in ((fused, model), (again, other)):
        refused(optimizer, m, RuntimeError, r"call opt\.backward", lambda m=m: loss_of(m, 0).backward())


def test_a_copied_model_is_free_of_the_hooks():
    model = net()
    Lomo(model, lr=0.1)
    other = copy.deepcopy(model)
    loss_of(other, 0).backward()
    assert all(p.grad is not None for p in other.parameters())


def test_a_group_added_later_trains_inside_backward_too():
    model = net()
    lomo = Lomo(list(model.inner.parameters()), lr=0.1)
    lomo.add_param_group({"params": [*model.shared.parameters(), *model.head.parameters()], "lr": 0.1})
    plain = net()
    train_plain(plain, SGD(plain, lr=0.1))
    train_fused(model, lomo)
    assert same(weights(plain), weights(model))
    assert re.fullmatch(r"\[0\.1, 0\.1\]", str([g["lr"] for g in lomo.param_groups]))
