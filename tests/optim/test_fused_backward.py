"""Updates inside backward: equal to backward, clipping and step; every wrong use refused before a weight moves."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lowmem.models import llama
from lowmem.optim import (
    CAME,
    SGD,
    SM3,
    Adafactor,
    AdaLomo,
    AdamMini,
    AdamW,
    FusedBackward,
    Lamb,
    Lion,
    Lomo,
    fused_backward,
)

RULES = {
    "sgd": lambda m: SGD(m, lr=0.05),
    "sgd momentum": lambda m: SGD(m, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: AdamW(m, lr=1e-2, weight_decay=0.1),
    "adam_mini": lambda m: AdamMini(m, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda m: Adafactor(m, lr=1e-2),
    "came": lambda m: CAME(m, lr=1e-2),
    "sm3": lambda m: SM3(m, lr=1e-2),
    "lion": lambda m: Lion(m, lr=1e-3),
    "lamb": lambda m: Lamb(m, lr=1e-2),
}


class Net(nn.Module):
    """Two blocks of which one is used three times, dropout, and optionally checkpoints of either kind."""

    def __init__(self, dropout=0.0, reentrant: bool | None = None):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.dropout, self.reentrant = nn.Dropout(dropout), reentrant

    def segment(self, layer, x):
        return self.dropout(torch.tanh(layer(x)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            if self.reentrant is None:
                x = self.segment(layer, x)
            else:
                x = checkpoint(self.segment, layer, x, use_reentrant=self.reentrant)
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return self.head(x)


def net(seed=0, **settings) -> Net:
    torch.manual_seed(seed)
    return Net(**settings)


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(
        4, 6, generator=generator
    ).requires_grad_()  # reentrant checkpoints need an input with a gradient


def loss_of(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    return factor * model(batch(step)).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b, tolerance: float = 0.0) -> bool:
    return all(
        torch.equal(x, y) if tolerance == 0 else torch.allclose(x, y, rtol=tolerance, atol=tolerance)
        for x, y in zip(a, b, strict=True)
    )


def train_plain(model, optimizer, steps=3, clip=None, value=None, factor=1.0, loss=loss_of):
    """backward, norm measured on unclamped gradients, value clamp, norm coefficient, step: the official order."""
    for step in range(steps):
        torch.manual_seed(1000 + step)
        loss(model, step, factor).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for g in gradients:
            if value is not None:
                g.clamp_(-value, value)
            if clip is not None:
                g.mul_(min(1.0, clip / (norm + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()


def train_fused(model, optimizer, steps=3, closure=False, factor=1.0, loss=loss_of):
    for step in range(steps):
        torch.manual_seed(1000 + step)
        optimizer.backward((lambda step=step: loss(model, step, factor)) if closure else loss(model, step, factor))
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


def refused(optimizer, model, kind, message, act) -> None:
    """act raises one line, and no weight and no state moved by a bit."""
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(kind, match=message) as error:
        act()
    assert "\n" not in str(error.value)
    assert same(before, weights(model))
    after = optimizer.state_dict()
    assert after["fused"] == state["fused"]
    for i, entries in state["state"].items():
        assert all(torch.equal(value, after["state"][i][key]) for key, value in entries.items())


# -- equal to backward and step ------------------------------------------------------------------------------------------


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


# -- loss scaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [dict(loss_scale=1024.0), dict(loss_scale="dynamic"), dict(loss_scale="dynamic", max_grad_norm=0.05)],
    ids=str,
)
def test_loss_scaling_changes_nothing_but_rounding(settings):
    plain, ours = net(), net()
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    lomo = Lomo(ours, lr=0.1, **settings)
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours), 1e-6)


def test_dynamic_scale_halves_and_skips_until_gradients_fit():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 2.0**127
    before = weights(model)
    skipped = 0
    for _ in range(120):  # fp32 norms are finite up to 1e19
        lomo.backward(loss_of(model, 0, 1e6))
        lomo.step()
        if not lomo.skipped:
            break
        skipped += 1
        assert same(before, weights(model)) and lomo.scale == 2.0 ** (127 - skipped) and lomo.clean_steps == 0
    assert skipped >= 1 and not lomo.skipped and not same(before, weights(model))
    assert lomo.clean_steps == 1 and all(p.isfinite().all() for p in model.parameters())


def test_dynamic_scale_grows_after_the_window_and_not_before(monkeypatch):
    monkeypatch.setattr(fused_backward, "SCALE_WINDOW", 3)
    model = net()
    lomo = Lomo(model, lr=0.01, loss_scale="dynamic")
    scales = []
    for step in range(7):
        if step == 4:
            lomo.backward(loss_of(model, 0, float("inf")))  # starts the count again
        else:
            lomo.backward(loss_of(model, step))
        lomo.step()
        scales.append(math.log2(lomo.scale))
    assert scales == [16, 16, 17, 17, 16, 16, 16]


def test_overflow_at_the_smallest_scale_is_an_error_and_moves_nothing():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 1.0
    refused(
        lomo,
        model,
        FloatingPointError,
        r"weight|bias.*smallest loss scale",
        lambda: lomo.backward(loss_of(model, 0, float("inf"))),
    )
    lomo.backward(loss_of(model, 0))


def test_half_precision_weights_overflow_skip_and_then_train():
    torch.manual_seed(0)
    model = nn.Linear(8, 8).half()
    x = torch.randn(4, 8).half()
    lomo = Lomo(model, lr=0.01, loss_scale="dynamic", max_grad_norm=1.0)
    first = float(model(x).detach().float().square().mean())
    for _ in range(30):
        lomo.backward(model(x).float().square().mean() * 16)
        lomo.step()
    assert lomo.scale < 2.0**16 and lomo.clean_steps > 0
    assert float(model(x).detach().float().square().mean()) < first and model.weight.isfinite().all()


def test_scale_and_clean_steps_are_saved_and_restored():
    model = net()
    lomo = Lomo(model, lr=0.1, loss_scale="dynamic")
    lomo.scale = 2.0**127
    for _ in range(3):
        lomo.backward(loss_of(model, 0, 1e6))
        lomo.step()
    stream = io.BytesIO()
    torch.save(lomo.state_dict(), stream)
    stream.seek(0)
    other = Lomo(net(), lr=0.1, loss_scale="dynamic")
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert (other.scale, other.clean_steps) == (lomo.scale, lomo.clean_steps) != (2.0**16, 0)


def test_infinite_gradients_do_what_clip_grad_norm_does_when_nobody_asked():
    plain, ours = net(), net()
    sgd, lomo = torch.optim.SGD(plain.parameters(), lr=0.1), Lomo(ours, lr=0.1, max_grad_norm=1.0)
    for model in (plain, ours):
        loss = model.inner[0](batch(0)).sum() + model.head.weight.sum() * float("inf")
        if model is plain:
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            sgd.step()
        else:
            lomo.backward(loss)
    assert all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a[a.isfinite()], b[b.isfinite()])
        for a, b in zip(weights(plain), weights(ours))
    )


# -- checkpoints, shared and unused weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [dict(), dict(max_grad_norm=0.05), dict(loss_scale="dynamic")], ids=str)
@pytest.mark.parametrize("closure", [False, True], ids=["graph", "closure"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_either_kind_gives_the_plain_result(reentrant, closure, settings):
    plain, ours = net(dropout=0.3), net(dropout=0.3, reentrant=reentrant)
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    train_fused(ours, Lomo(ours, lr=0.1, **settings), closure=closure)
    assert same(weights(plain), weights(ours), 1e-6)


class Reentrant(nn.Module):
    """Reentrant checkpoints over a list of (layer, inside a checkpoint or not) that may change from step to step."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.plan = [("a", True), ("b", True), ("c", False)]

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        for name, inside in self.plan:
            layer = getattr(self, name)
            x = checkpoint(layer, x, use_reentrant=True) if inside else layer(x)
        return x.square().mean()


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


# -- wrong use -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    model = net()
    lomo = FusedBackward(AdamMini(model, lr=0.1))
    lomo.backward(loss_of(model, 0))
    lomo.step()
    return model, lomo


def test_a_plain_backward_is_refused_by_name(pair):
    model, lomo = pair
    refused(
        lomo,
        model,
        RuntimeError,
        r"(weight|bias): loss\.backward\(\) was called.*call opt\.backward\(loss\)",
        lambda: loss_of(model, 0).backward(),
    )
    lomo.zero_grad()
    lomo.backward(loss_of(model, 0))


def test_two_backwards_without_a_step_are_refused(pair):
    model, lomo = pair
    lomo.backward(loss_of(model, 1))
    refused(lomo, model, RuntimeError, "twice without step", lambda: lomo.backward(loss_of(model, 2)))
    lomo.step()
    refused(lomo, model, RuntimeError, "before backward", lomo.step)


def test_a_gradient_left_over_is_refused_by_name(pair):
    model, lomo = pair
    with lomo.paused():
        loss_of(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    refused(
        lomo,
        model,
        RuntimeError,
        r"^inner\.0\.weight: holds a gradient from before",
        lambda: lomo.backward(loss_of(model, 0)),
    )
    lomo.zero_grad()
    lomo.backward(loss_of(model, 0))


def test_backward_while_paused_and_after_close_is_refused(pair):
    model, lomo = pair
    with lomo.paused():
        refused(lomo, model, RuntimeError, "paused", lambda: lomo.backward(loss_of(model, 0)))
        with lomo.paused():
            pass
        loss_of(model, 0).backward()  # still paused
    lomo.zero_grad()
    lomo.close()
    refused(lomo, model, RuntimeError, r"opt\.close\(\)", lambda: lomo.backward(loss_of(model, 0)))
    loss_of(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert same(weights(model), weights(model))


def test_a_second_optimizer_on_the_same_weights_takes_over_and_the_first_says_so():
    model = net()
    first = Lomo(model, lr=0.1)
    second = Lomo(model, lr=0.1)
    refused(first, model, RuntimeError, "another optimizer took over", lambda: first.backward(loss_of(model, 0)))
    plain = net()
    train_plain(plain, SGD(plain, lr=0.1))
    train_fused(model, second)
    assert same(weights(plain), weights(model))


@pytest.mark.parametrize("wrong", [torch.tensor(1.0), torch.ones(2, requires_grad=True) * 2, None, 3.0], ids=str)
def test_what_is_no_loss_is_refused(pair, wrong):
    model, lomo = pair
    refused(lomo, model, (RuntimeError, TypeError), "no graph|scalar", lambda: lomo.backward(wrong))
    refused(lomo, model, (RuntimeError, TypeError), "no graph|scalar", lambda: lomo.backward(lambda: wrong))
    lomo.backward(loss_of(model, 0))


@pytest.mark.parametrize("settings", [dict(), dict(max_grad_norm=1.0)], ids=str)
def test_an_exception_inside_backward_leaves_the_optimizer_usable(settings):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise ValueError("broken on purpose")

    plain, ours = net(), net()
    lomo = Lomo(ours, lr=0.1, **settings)
    refused(lomo, ours, ValueError, "on purpose", lambda: lomo.backward(Broken.apply(loss_of(ours, 0))))
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours), 1e-6)


def test_an_exception_in_the_second_run_of_a_closure_does_not_leave_a_stale_clip():
    plain, ours = net(), net()
    lomo = Lomo(ours, lr=0.1, max_grad_norm=1e-3)
    runs = []

    def fails_second():
        runs.append(1)
        if len(runs) == 2:
            raise ValueError("on purpose")
        return loss_of(ours, 0)

    refused(lomo, ours, ValueError, "on purpose", lambda: lomo.backward(fails_second))
    lomo.max_grad_norm = None
    train_plain(plain, SGD(plain, lr=0.1))
    train_fused(ours, lomo)
    assert same(weights(plain), weights(ours))


def test_a_closure_that_builds_another_graph_the_second_time_is_refused():
    model = Reentrant()
    lomo = Lomo(model, lr=0.1)
    plans = iter([[("a", True), ("b", True)], [("a", True), ("a", True)]])

    def closure():
        model.plan = next(plans)
        return model(torch.ones(2, 4))

    refused(lomo, model, RuntimeError, "another graph", lambda: lomo.backward(closure))


@pytest.mark.parametrize("answer", ["raise", "skip"])
def test_non_finite_gradients_are_named_or_skipped_also_without_clipping(answer):
    model = net()
    lomo = Lomo(model, lr=0.1, nonfinite=answer)
    loss = lambda: loss_of(model, 0) + (model.shared.bias * float("nan")).sum()  # noqa: E731
    before = weights(model)
    if answer == "raise":
        refused(
            lomo, model, FloatingPointError, r"shared\.bias: gradient holds inf or nan", lambda: lomo.backward(loss())
        )
    else:
        lomo.backward(loss())
        lomo.step()
        assert lomo.skipped and same(before, weights(model))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_grad_norm=0.0),
        dict(clip_value=-1.0),
        dict(grouped_norm=float("nan")),
        dict(loss_scale=0),
        dict(loss_scale="auto"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusedBackward(SGD(net(), lr=0.1), **wrong)
    with pytest.raises(TypeError, match=r"lowmem\.optim"):
        FusedBackward(torch.optim.SGD(net().parameters(), lr=0.1))


def test_an_alias_that_still_needs_the_old_weight_is_an_error_and_never_a_wrong_gradient():
    """A detached use of a weight earlier in the network reads it after its update; torch notices the changed version."""
    for build in (
        lambda m: Lomo(m, lr=0.1),
        lambda m: FusedBackward(AdamW(m, lr=0.1)),
        lambda m: FusedBackward(AdamMini(m, lr=0.1)),
    ):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
        fused = build(model)
        h = model[0](torch.randn(2, 4))
        h = F.linear(h, model[1].weight.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fused.backward(model[1](h).square().mean())


# -- together with other things ------------------------------------------------------------------------------------------


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
    plain, ours = net(), net()
    compiled = torch.compile(ours, backend="aot_eager")
    if settings and not closure:
        lomo = Lomo(compiled, lr=0.1, **settings)
        refused(lomo, compiled, RuntimeError, "pass a closure", lambda: lomo.backward(loss_of(compiled, 0)))
        return
    train_plain(plain, SGD(plain, lr=0.1), clip=settings.get("max_grad_norm"))
    lomo = Lomo(compiled, lr=0.1, **settings)
    train_fused(compiled, lomo, closure=closure)
    assert same(weights(plain), weights(ours), 1e-5)


# -- saving and copying --------------------------------------------------------------------------------------------------


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
