"""Updates inside backward with activation checkpoints, shared weights and unused weights."""

import copy

import pytest
import torch
from fused_nets import Reentrant, loss_of, net, refused, same, train_fused, train_plain, weights
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowmem.models import llama
from lowmem.optim import (
    SGD,
    AdamMini,
    FusedBackward,
    Lomo,
)


@pytest.mark.parametrize("settings", [dict(), dict(max_grad_norm=0.05), dict(loss_scale="dynamic")], ids=str)
@pytest.mark.parametrize("closure", [False, True], ids=["graph", "closure"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_either_kind_gives_the_plain_result(reentrant, closure, settings):
    plain, ours = net(dropout=0.3), net(dropout=0.3, reentrant=reentrant)
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    train_fused(ours, Lomo(ours, lr=0.1, **settings), closure=closure)
    assert same(weights(plain), weights(ours), 1e-6)


MODES = {
    "one pass": dict(),
    "norm": dict(max_grad_norm=0.1),
    "dynamic": dict(loss_scale="dynamic"),
    "grouped": dict(grouped_norm=0.1),
}
SHARED = {
    "two checkpoints": [("a", True), ("b", True), ("a", True)],
    "inside and outside": [("a", False), ("b", True), ("a", True)],
}


@pytest.mark.parametrize("closure", [False, True], ids=["graph", "closure"])
@pytest.mark.parametrize("when", ["first step", "later step"])
@pytest.mark.parametrize("sharing", SHARED)
@pytest.mark.parametrize("mode", MODES)
def test_a_weight_shared_by_reentrant_checkpoints_is_refused_before_anything_moves(mode, sharing, when, closure):
    torch.manual_seed(0)
    model = Reentrant()
    lomo = Lomo(model, lr=0.1, **MODES[mode])
    x = torch.randn(2, 4)

    def backward():
        lomo.backward((lambda: model(x)) if closure else model(x))

    if when == "later step":
        for _ in range(2):
            backward()
            lomo.step()
    model.plan = SHARED[sharing]
    refused(lomo, model, RuntimeError, r"^a\.(weight|bias): .*use_reentrant=False", backward)
    model.plan = [("a", True), ("b", False)]
    backward()  # the optimizer is as usable as before


@pytest.mark.parametrize("way", ["lambda", "partial", "method", "module"])
def test_the_same_reentrant_graph_is_measured_once_however_its_function_is_written(way):
    from functools import partial

    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    x = torch.randn(2, 4).requires_grad_()
    calls = {"lambda": lambda layer: lambda h: layer(h), "partial": lambda layer: partial(layer.__call__),
             "method": lambda layer: layer.forward, "module": lambda layer: layer}  # fmt: skip
    lomo, passes = Lomo(model, lr=0.1), []
    model[2].weight.register_hook(lambda g: passes.append(1))
    for _ in range(3):
        h = x
        for layer in model:
            h = checkpoint(calls[way](layer), h, use_reentrant=True)
        lomo.backward(h.square().mean())
        lomo.step()
    assert len(passes) == 1 + 3


def test_a_checkpointed_function_that_picks_other_weights_unseen_is_caught_at_least_afterwards():
    torch.manual_seed(0)
    layers, chosen = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)]), {"first": 0}
    lomo = Lomo(layers, lr=0.1)
    pick = [0, 1]

    def segment(which):
        def run(h):
            return layers[pick[which]](h)  # `pick` is a list in the closure: seen

        return run

    x = torch.randn(2, 4).requires_grad_()

    def loss():
        h = checkpoint(segment(0), x, use_reentrant=True)
        return checkpoint(segment(1), h, use_reentrant=True).square().mean()

    lomo.backward(loss())
    lomo.step()
    pick[1] = 0
    refused(lomo, layers, RuntimeError, "use_reentrant=False", lambda: lomo.backward(loss()))
    state = type("State", (), {"index": 1})()

    def hidden(h):
        return layers[state.index](h)  # an attribute of an object: not seen

    def second():
        return checkpoint(hidden, checkpoint(layers[0], x, use_reentrant=True), use_reentrant=True).square().mean()

    lomo.backward(second())
    lomo.step()
    state.index = 0
    with pytest.raises(RuntimeError, match="already changed, reload"):
        lomo.backward(second())
    assert chosen


def test_tied_tables_get_one_update_with_the_summed_gradient():
    torch.manual_seed(0)
    plain = llama.build(n_layer=1, n_head=2, n_embd=8, n_hidden=12, vocab_size=11, block_size=8, tied=True)
    ours = copy.deepcopy(plain)
    tokens = torch.randint(0, 11, (2, 8))
    sgd, lomo = torch.optim.SGD(plain.parameters(), lr=0.1), Lomo(ours, lr=0.1)
    for _ in range(3):
        plain(tokens, tokens).backward()
        sgd.step()
        sgd.zero_grad()
        lomo.backward(ours(tokens, tokens))
        lomo.step()
    assert same(weights(plain), weights(ours))


def test_frozen_and_unused_parameters_stay_and_thawed_ones_train():
    model = net()
    model.inner[0].requires_grad_(False)
    lomo = Lomo(list(model.parameters()), lr=0.1)
    before = weights(model)
    lomo.backward(model.head(torch.ones(1, 6)).sum())
    lomo.step()
    moved = {name for (name, p), old in zip(model.named_parameters(), before) if not torch.equal(p, old)}
    assert moved == {"head.weight", "head.bias"}
    model.inner[0].requires_grad_(True)
    lomo.backward(loss_of(model, 0))
    lomo.step()
    assert not torch.equal(model.inner[0].weight, before[0]) and model.inner[0].weight.grad is None


COMPILED = {
    "step": lambda ours, loss: (ours.backward(loss()), torch.compile(ours.step, backend="eager")()),
    "step with a closure": lambda ours, loss: torch.compile(ours.step, backend="eager")(closure=loss),
    "training step": lambda ours, loss: torch.compile(lambda: (ours.backward(loss()), ours.step()), backend="eager")(),
}


@pytest.mark.parametrize("how", COMPILED)
def test_under_a_compiler_backward_and_step_run_as_they_are(how):
    """torch 2.11 refuses what traced code writes on an optimizer, 2.13 loses it."""
    torch._dynamo.reset()
    nets = net(), net()
    ours, plain = (FusedBackward(AdamMini(model, lr=0.01), max_grad_norm=0.05) for model in nets)
    for k in range(3):
        COMPILED[how](ours, lambda k=k: loss_of(nets[0], k))
        plain.backward(loss_of(nets[1], k))
        plain.step()
        assert ours.grad_norm == plain.grad_norm
    assert same(weights(nets[0]), weights(nets[1]))
