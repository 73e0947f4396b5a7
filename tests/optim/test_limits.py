"""Where one method becomes another: equalities that must hold whatever the numbers are."""

import copy

import pytest
import torch
import zoo
from torch.utils.checkpoint import checkpoint
from zoo import TINY, checkpointed, double_loss, language_loss, language_model

from lowmem.models import gpt2, llama
from lowmem.optim import SGD, AdamMini, AdamW, FusedBackward, Lomo


def close(a, b, tolerance):
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def follow(ours, model, theirs, other, steps, clip=None, loss=language_loss):
    """Both train on the same batches, each with its own gradients."""
    for step in range(steps):
        zoo.apply(ours, loss(model, step))
        theirs.zero_grad()
        loss(other, step).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(other.parameters(), clip, foreach=False)
        theirs.step()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_adam_mini_with_one_element_blocks_is_adamw(dtype, tolerance):
    a, b = zoo.net(dtype), zoo.net(dtype)
    settings = dict(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    zoo.train(AdamMini(a, overrides={"*": "coordinate"}, **settings), a, 20)
    zoo.train(AdamW(b, **settings), b, 20)
    close(a, b, tolerance)


def test_adam_mini_with_one_element_blocks_is_torch_adamw():
    a, b = zoo.net(), zoo.net()
    zoo.train(AdamMini(a, lr=1e-2, overrides={"*": "coordinate"}), a, 20)
    zoo.train(torch.optim.AdamW(b.parameters(), lr=1e-2, weight_decay=0.0), b, 20)
    close(a, b, 1e-6)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_unclipped_lomo_is_sgd_bit_for_bit(make):
    a = language_model(make)
    b = copy.deepcopy(a)
    follow(Lomo(a, lr=0.1), a, torch.optim.SGD(b.parameters(), lr=0.1, foreach=False), b, 10)
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@pytest.mark.parametrize("limit", [0.05, 1e3])
def test_lomo_with_norm_clip_is_clip_grad_norm_and_sgd(limit):
    a = language_model()
    b = copy.deepcopy(a)
    optimizer = Lomo(a, lr=0.1, max_grad_norm=limit)
    follow(optimizer, a, torch.optim.SGD(b.parameters(), lr=0.1), b, 10, clip=limit)
    close(a, b, 1e-6)
    norm = torch.nn.utils.get_total_norm([p.grad for p in b.parameters()]).item()  # already clipped in place
    assert min(optimizer.grad_norm, limit) == pytest.approx(norm, rel=1e-4)


def test_lomo_with_a_closure_is_lomo_with_a_kept_graph():
    a = language_model()
    b = copy.deepcopy(a)
    kept, again = Lomo(a, lr=0.1, max_grad_norm=0.05), Lomo(b, lr=0.1, max_grad_norm=0.05)
    for step in range(5):
        kept.backward(language_loss(a, step))
        again.backward(lambda step=step: language_loss(b, step))
        kept.step(), again.step()
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


def test_the_closure_sees_the_same_random_numbers_in_both_passes():
    torch.manual_seed(0)
    a = gpt2.build(**TINY, dropout=0.5)
    b = copy.deepcopy(a)
    optimizer = Lomo(a, lr=0.1, max_grad_norm=0.05)
    torch.manual_seed(3)
    optimizer.backward(lambda: language_loss(a, 0))
    torch.manual_seed(3)
    language_loss(b, 0).backward()
    torch.nn.utils.clip_grad_norm_(b.parameters(), 0.05)
    torch.optim.SGD(b.parameters(), lr=0.1).step()
    close(a, b, 1e-6)


@pytest.mark.parametrize("scale", [1024.0, "dynamic"])
def test_a_power_of_two_loss_scale_changes_nothing_in_fp32(scale):
    a, b = language_model(), language_model()
    scaled, plain = Lomo(a, lr=0.1, loss_scale=scale), Lomo(b, lr=0.1)
    for step in range(5):
        zoo.apply(scaled, language_loss(a, step))
        zoo.apply(plain, language_loss(b, step))
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


def test_grouped_norm_clips_every_tensor_by_its_own_norm():
    a = language_model()
    b = copy.deepcopy(a)
    optimizer, sgd = Lomo(a, lr=0.1, grouped_norm=0.01), torch.optim.SGD(b.parameters(), lr=0.1)
    for step in range(5):
        zoo.apply(optimizer, language_loss(a, step))
        sgd.zero_grad()
        language_loss(b, step).backward()
        for p in b.parameters():
            torch.nn.utils.clip_grad_norm_([p], 0.01)
        sgd.step()
    close(a, b, 1e-6)


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_fused_backward_is_step(name):
    cls, fixed = zoo.SETTINGS[name]
    a = language_model()
    b = copy.deepcopy(a)
    follow(FusedBackward(cls(a, **fixed)), a, cls(b, **fixed), b, 5)
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_fused_backward_with_norm_clip_is_clip_and_step(name):
    cls, fixed = zoo.SETTINGS[name]
    a, b = language_model().double(), language_model().double()
    follow(FusedBackward(cls(a, **fixed), max_grad_norm=0.1), a, cls(b, **fixed), b, 5, clip=0.1, loss=double_loss)
    close(a, b, 1e-9)


@pytest.mark.parametrize("name", zoo.SETTINGS)
def test_frozen_parameters_neither_move_nor_disturb(name):
    cls, fixed = zoo.SETTINGS[name]
    a, b = language_model(), language_model()
    for model in (a, b):
        model.blocks[0].requires_grad_(False)
    before = zoo.snapshot(a.blocks[0])
    follow(FusedBackward(cls(a, **fixed)), a, cls(b, **fixed), b, 3)
    assert zoo.same(before, zoo.snapshot(a.blocks[0]))
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@pytest.mark.parametrize("reentrant", [True, False])
def test_lomo_under_activation_checkpointing_is_sgd(reentrant):
    a = language_model()
    b = copy.deepcopy(a)
    sgd = torch.optim.SGD(b.parameters(), lr=0.1, foreach=False)
    follow(Lomo(a, lr=0.1), a, sgd, b, 4, loss=checkpointed(reentrant))
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


def test_a_weight_shared_by_reentrant_checkpoints_is_refused_before_anything_moves():
    model = torch.nn.Linear(4, 4)
    optimizer = Lomo(model, lr=0.1)
    before = zoo.snapshot(model)
    x = torch.ones(2, 4, requires_grad=True)
    loss = checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True).square().sum()
    with pytest.raises(RuntimeError, match=r"weight|bias.*use_reentrant=False"):
        optimizer.backward(loss)
    assert zoo.same(before, zoo.snapshot(model))
    assert all(p.grad is None for p in model.parameters())


def test_a_weight_shared_by_plain_checkpoints_is_right():
    a = torch.nn.Linear(4, 4)
    b = copy.deepcopy(a)

    def loss(model, step):
        x = torch.ones(2, 4) + step
        return checkpoint(model, checkpoint(model, x, use_reentrant=False), use_reentrant=False).square().mean()

    follow(Lomo(a, lr=1e-3), a, torch.optim.SGD(b.parameters(), lr=1e-3, foreach=False), b, 4, loss=loss)
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


def test_one_gradient_is_alive_at_a_time():
    model = language_model()
    optimizer = Lomo(model, lr=0.1)
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    zoo.apply(optimizer, language_loss(model, 0))
    assert len(alive) == len(list(model.parameters())) and max(alive) == 0  # ours ran first and freed its own
    assert all(p.grad is None for p in model.parameters())


def test_the_dynamic_loss_scale_falls_on_overflow_and_grows_after_clean_steps(monkeypatch):
    from lowmem.optim.core import loss_scale

    monkeypatch.setattr(loss_scale, "WINDOW", 3)
    model = zoo.net()
    optimizer = Lomo(model, lr=1e-3, loss_scale="dynamic")
    before, start = zoo.snapshot(model), optimizer.scale
    zoo.apply(optimizer, model(zoo.batch(0)) * float("inf"))
    assert optimizer.skipped and optimizer.scale == start / 2 and zoo.same(before, zoo.snapshot(model))
    scales = []
    for step in range(6):
        zoo.advance(optimizer, model, step)
        scales.append(optimizer.scale)
    assert scales == [start / 2, start / 2, start, start, start, 2 * start]
    assert not optimizer.skipped


def test_value_clip_comes_before_the_norm_factor():
    p = torch.nn.Parameter(torch.zeros(2))
    Lomo([p], lr=1.0, clip_value=1.0, max_grad_norm=2.5).backward((p * torch.tensor([3.0, 4.0])).sum())
    torch.testing.assert_close(p.detach(), -torch.tensor([0.5, 0.5]))  # norm 5 of the raw gradient halves the clamped


def test_fused_sgd_with_decoupled_decay_is_lomo():
    a, b = language_model(), language_model()
    lomo, fused = Lomo(a, lr=0.1, weight_decay=0.1), FusedBackward(SGD(b, lr=0.1, weight_decay=0.1, decoupled=True))
    for step in range(3):
        zoo.apply(lomo, language_loss(a, step))
        zoo.apply(fused, language_loss(b, step))
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))
