"""An update inside backward gives the weights of backward, clipping and step, for every rule."""

import pytest
import torch
from fused_nets import RULES, loss_of, net, same, train_fused, train_plain, weights
from torch import nn

from lowmem.optim import (
    Adafactor,
    AdaLomo,
    FusedBackward,
    Lomo,
)


@pytest.mark.parametrize("closure", [False, True], ids=["kept graph", "closure"])
@pytest.mark.parametrize("clip", [None, 0.05, 1e9])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_inside_backward_equals_backward_clip_and_step(rule, clip, closure):
    plain, ours = net(dropout=0.2), net(dropout=0.2)
    train_plain(plain, RULES[rule](plain), clip=clip)
    fused = FusedBackward(RULES[rule](ours), max_grad_norm=clip)
    train_fused(ours, fused, closure=closure)
    assert same(weights(plain), weights(ours), 0.0 if clip is None else 1e-6)
    assert (fused.grad_norm is None) == (clip is None)


def test_lomo_without_clipping_is_torch_sgd_bit_for_bit():
    plain, ours = net(), net()
    train_plain(plain, torch.optim.SGD(plain.parameters(), lr=0.1), steps=5)
    train_fused(ours, Lomo(ours, lr=0.1), steps=5)
    assert same(weights(plain), weights(ours))


def test_lomo_with_norm_clipping_is_clip_grad_norm_and_sgd():
    plain, ours = net(), net()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    lomo = Lomo(ours, lr=0.1, max_grad_norm=0.02)
    for step in range(4):
        loss_of(plain, step).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.02)
        sgd.step()
        sgd.zero_grad()
        lomo.backward(loss_of(ours, step))
        lomo.step()
        assert lomo.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert same(weights(plain), weights(ours), 1e-6)


@pytest.mark.parametrize("rule", ["sgd", "adam_mini"])
def test_values_are_clamped_before_the_norm_coefficient_which_saw_them_unclamped(rule):
    plain, ours = net(), net()
    train_plain(plain, RULES[rule](plain), clip=0.05, value=0.003)
    train_fused(ours, FusedBackward(RULES[rule](ours), max_grad_norm=0.05, clip_value=0.003))
    assert same(weights(plain), weights(ours), 1e-6)


def test_grouped_norm_clips_each_tensor_by_its_own_norm_in_one_pass():
    plain, ours = net(), net()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    lomo = Lomo(ours, lr=0.1, grouped_norm=0.01)
    passes = count_backwards(ours.head)
    for step in range(3):
        loss_of(plain, step).backward()
        for p in plain.parameters():
            nn.utils.clip_grad_norm_([p], 0.01)
        sgd.step()
        sgd.zero_grad()
        lomo.backward(loss_of(ours, step))
        lomo.step()
    assert same(weights(plain), weights(ours), 1e-6)
    assert len(passes) == 3


def count_backwards(module: nn.Module) -> list:
    seen = []
    module.register_full_backward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize(("settings", "passes"), [(dict(), 1), (dict(clip_value=0.1), 1), (dict(loss_scale=8.0), 1),
                                                  (dict(max_grad_norm=1.0), 2), (dict(loss_scale="dynamic"), 2),
                                                  (dict(nonfinite="skip"), 2)], ids=str)  # fmt: skip
def test_a_second_pass_runs_only_where_it_is_needed(settings, passes):
    model = net()
    lomo = Lomo(model, lr=0.1, **settings)
    seen = count_backwards(model.head)
    lomo.backward(loss_of(model, 0))
    assert len(seen) == passes


def test_adalomo_equals_its_rule_run_by_step():
    plain, ours = net(), net()
    train_plain(plain, Adafactor(plain, lr=1e-2, decay_rate=-0.8, clip_threshold=1.0), steps=4)
    train_fused(ours, AdaLomo(ours, lr=1e-2), steps=4)
    assert same(weights(plain), weights(ours), 1e-6)


def test_a_closure_with_dropout_leaves_the_random_generator_where_one_forward_does():
    model = net(dropout=0.5)
    torch.manual_seed(3)
    loss_of(model, 0)
    expected = torch.rand(4)
    lomo = Lomo(model, lr=0.1, max_grad_norm=0.1)
    torch.manual_seed(3)
    lomo.backward(lambda: loss_of(model, 0))
    assert torch.equal(torch.rand(4), expected)


def test_schedulers_and_groups_set_the_rate_of_each_step():
    plain, ours = net(), net()

    def groups(model):
        return [
            {"params": list(model.inner.parameters())},
            {"params": [*model.shared.parameters(), *model.head.parameters()], "lr": 0.3},
        ]

    pairs = [torch.optim.SGD(groups(plain), lr=0.1), Lomo(groups(ours), lr=0.1)]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in pairs]
    for _ in range(3):
        train_plain(plain, pairs[0], steps=1)
        train_fused(ours, pairs[1], steps=1)
        for scheduler in schedulers:
            scheduler.step()
    assert same(weights(plain), weights(ours)) and pairs[1].param_groups[1]["lr"] == pytest.approx(0.3 / 4)


def test_decay_is_decoupled_and_respects_no_decay():
    model = net()
    start = weights(model)
    lomo = Lomo(model, lr=0.1, weight_decay=0.5, no_decay=["*bias"])
    lomo.backward(sum((p * 0).sum() for p in model.parameters()))
    for (name, p), before in zip(model.named_parameters(), start):
        assert torch.equal(p, before if name.endswith("bias") else before * (1 - 0.1 * 0.5))
