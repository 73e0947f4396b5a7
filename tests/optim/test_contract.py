"""What every optimizer of the package promises as a torch.optim.Optimizer; none is left out. Bad input: test_refusals.py."""

import copy

import pytest
import torch
import zoo
from torch import nn
from torch.optim import lr_scheduler

from lowmem.optim.core import rule

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


# -- training ---------------------------------------------------------------------------------------------------------------


@every
def test_it_lowers_the_loss_and_moves_every_parameter(case):
    model = zoo.net()
    before = zoo.snapshot(model)
    optimizer = case.build(model)
    fixed = zoo.batch(0)
    losses = [zoo.apply(optimizer, model(fixed)).item() for _ in range(15)]
    assert losses[-1] < losses[0]
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_floating_dtype_trains_and_keeps_its_dtype(case, dtype):
    model = zoo.net(dtype)
    reference = zoo.net(torch.float64)
    optimizer, exact = case.build(model), case.build(reference)
    for step in range(3):
        zoo.advance(optimizer, model, step)
        zoo.advance(exact, reference, step)
    for p, q in zip(model.parameters(), reference.parameters()):
        assert p.dtype == dtype and p.isfinite().all()
        assert (p - q).abs().max() < (1e-12 if dtype == torch.float64 else 0.08)


@every
def test_16_bit_arithmetic_is_fp32_inside(case):
    """A 16-bit step is the fp32 step of the same numbers, rounded: no 16-bit intermediate results."""
    start = [p.detach() for p in zoo.net(torch.bfloat16).parameters()]
    gradients = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).bfloat16() for i, p in enumerate(start)
    ]
    low = [nn.Parameter(p.clone()) for p in start]
    high = [nn.Parameter(p.float()) for p in start]
    zoo.feed(case, zoo.loose(case, low, state_dtype=torch.float32), low, gradients)
    zoo.feed(case, zoo.loose(case, high), high, [g.float() for g in gradients])
    for p, q in zip(low, high):
        torch.testing.assert_close(p.float(), q.detach().bfloat16().float(), rtol=0.008, atol=1e-6)


@every
def test_a_parameter_without_gradient_keeps_its_bits_and_its_count(case):
    model = zoo.net()
    optimizer = case.build(model, **({} if "lomo" in case.name else {"weight_decay": 0.1}))
    before = zoo.snapshot(model.conv)
    for _ in range(2):
        zoo.apply(optimizer, (model.linear(torch.ones(1, 3)) * model.scale).square().sum())
    assert zoo.same(before, zoo.snapshot(model.conv))
    zoo.advance(optimizer, model, 0)
    assert not zoo.same(before, zoo.snapshot(model.conv))
    counts = {name: optimizer.state[p]["step"].item() for name, p in model.named_parameters()}
    assert counts == {"linear.weight": 3, "linear.bias": 3, "conv.weight": 1, "scale": 3}


@every
def test_a_late_first_gradient_gets_a_first_step(case):
    """Bias corrections count a parameter's own steps, not the optimizer's."""
    late, early = zoo.net(), zoo.net()
    optimizer, fresh = case.build(late), case.build(early)
    for _ in range(3):
        zoo.apply(optimizer, (late.linear(torch.ones(1, 3)) * late.scale).square().sum())
    image = torch.ones(1, 2, 3, 3)
    zoo.apply(optimizer, late.conv(image).square().mean())
    zoo.apply(fresh, early.conv(image).square().mean())
    assert torch.equal(late.conv.weight, early.conv.weight)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_parameters_train_like_contiguous_ones(case, dtype):
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 5), (4, 3, 2, 2))]
    strided = [plain[0].t().contiguous().t(), plain[1].to(memory_format=torch.channels_last)]
    assert not any(p.is_contiguous() for p in strided)
    a, b = [nn.Parameter(p.clone()) for p in plain], [nn.Parameter(p) for p in strided]
    ours, other = zoo.loose(case, a), zoo.loose(case, b)
    for step in range(3):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(dtype) for p in plain]
        zoo.feed(case, ours, a, gradients)
        zoo.feed(case, other, b, [gradients[0].t().contiguous().t(), gradients[1]])
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert not q.is_contiguous()


@every
def test_empty_tensors_and_scalars_train(case):
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((0,), (3, 0), (0, 4), (), (1,), (2, 2))]
    optimizer = zoo.loose(case, parameters)
    for _ in range(2):
        zoo.feed(case, optimizer, parameters, [torch.full_like(p, 0.5) for p in parameters])
    assert all((p < 1).all() and p.isfinite().all() for p in parameters)


@every
def test_zero_gradients_neither_move_nor_break(case):
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((), (3,), (2, 3))]
    optimizer = zoo.loose(case, parameters)
    for _ in range(2):
        zoo.feed(case, optimizer, parameters, [torch.zeros_like(p) for p in parameters])
    assert all((p == 1).all() for p in parameters)


# -- groups, schedules, closures, hooks -------------------------------------------------------------------------------------


@every
def test_groups_have_their_own_learning_rate(case):
    split, alone = zoo.net(), zoo.net()
    groups = [
        {"params": list(split.linear.parameters()) + [split.scale], "lr": 0.0},
        {"params": list(split.conv.parameters())},
    ]
    zoo.train(case.build(groups, model=split), split, 1)
    zoo.train(case.build(alone), alone, 1)
    assert zoo.same(zoo.snapshot(split.linear), zoo.snapshot(zoo.net().linear))
    assert zoo.same(zoo.snapshot(split.conv), zoo.snapshot(alone.conv))


@every
def test_a_group_added_later_trains_as_if_it_had_been_there(case):
    grown, whole = zoo.net(), zoo.net()
    optimizer = case.build([{"params": [*grown.linear.parameters(), grown.scale]}], model=grown)
    optimizer.add_param_group({"params": list(grown.conv.parameters())})
    zoo.train(optimizer, grown, 3)
    zoo.train(case.build(whole), whole, 3)
    assert zoo.same(zoo.snapshot(grown), zoo.snapshot(whole))


@every
@pytest.mark.parametrize("named", [True, False])
def test_parameters_and_named_parameters_train_like_the_model(case, named):
    listed, whole = zoo.net(), zoo.net()
    optimizer = zoo.loose(case, listed.named_parameters() if named else listed.parameters())
    assert ("param_names" in optimizer.param_groups[0]) == named
    zoo.train(optimizer, listed, 3)
    zoo.train(case.build(whole, **({"scheme": "tensor"} if "mini" in case.name else {})), whole, 3)
    assert zoo.same(zoo.snapshot(listed), zoo.snapshot(whole))


SCHEDULES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8, cycle_momentum=False),
}


@every
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedulers_set_the_rate_of_every_step(case, schedule):
    scheduled, by_hand = zoo.net(), zoo.net()
    a, b = case.build(scheduled), case.build(by_hand)
    follower = SCHEDULES[schedule](a)
    seen = []
    for step in range(4):
        b.param_groups[0]["lr"] = a.param_groups[0]["lr"]
        seen.append(a.param_groups[0]["lr"])
        zoo.advance(a, scheduled, step)
        zoo.advance(b, by_hand, step)
        follower.step()
    assert len(set(seen)) > 1
    assert zoo.same(zoo.snapshot(scheduled), zoo.snapshot(by_hand))


@every
def test_one_cycle_also_cycles_momentum_where_there_is_one(case):
    model = zoo.net()
    optimizer = case.build(model)
    key = next((k for k in ("betas", "momentum") if k in optimizer.defaults), None)
    if key is None:
        with pytest.raises(ValueError, match="momentum"):
            lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=8)
        return
    cycle, seen = lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=40), set()
    for step in range(4):
        seen.add(optimizer.param_groups[0][key])
        zoo.advance(optimizer, model, step)
        cycle.step()
    assert len(seen) == 4 and all(p.isfinite().all() for p in model.parameters())


@every
def test_a_tensor_learning_rate_equals_a_number(case):
    a, b = zoo.net(), zoo.net()
    zoo.train(case.build(a, lr=torch.tensor(0.25)), a, 2)
    zoo.train(case.build(b, lr=0.25), b, 2)
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@every
def test_step_with_a_closure_returns_its_loss_and_does_the_same(case):
    a, b = zoo.net(), zoo.net()
    ours, plain = case.build(a), case.build(b)

    def closure():  # inside backward, the optimizer runs the backward pass itself
        loss = a(zoo.batch(0))
        if not case.fused:
            ours.zero_grad()
            loss.backward()
        return loss

    loss = ours.step(closure)
    expected = zoo.advance(plain, b, 0)
    assert loss.item() == expected.item()
    assert zoo.same(zoo.snapshot(a), zoo.snapshot(b))


@every
def test_step_hooks_run_once_around_every_step(case):
    model, optimizer = zoo.trained(case, 0)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    zoo.train(optimizer, model, 2)
    assert calls == ["before", "after"] * 2


@every
def test_zero_grad_clears(case):
    model, optimizer = zoo.trained(case, 1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@every
def test_no_decay_by_name_and_by_predicate_decays_the_rest_only(case):
    for chosen in (["*bias", "scale"], lambda name, p: p.ndim < 2):
        model = zoo.net()
        optimizer = case.build(model, lr=0.1, weight_decay=0.5, no_decay=chosen)
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        found = {name: decay[id(p)] for name, p in model.named_parameters()}
        assert found == {"linear.weight": 0.5, "linear.bias": 0.0, "conv.weight": 0.5, "scale": 0.0}
        plain = zoo.net()
        zoo.train(optimizer, model, 1)
        zoo.train(case.build(plain, lr=0.1), plain, 1)
        assert torch.equal(model.linear.bias, plain.linear.bias)
        assert not torch.equal(model.linear.weight, plain.linear.weight)


@every
def test_a_compiled_step_gives_the_same_numbers(case):
    """Traced whole, without code generation."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    a = nn.Linear(3, 2, bias=False)
    b = copy.deepcopy(a)
    ours, plain = case.build(a), case.build(b)
    step = torch.compile(ours.step, backend="eager")
    for k in range(3):
        x = zoo.batch(k)[:, :3]
        loss = a(x).square().mean()
        if case.fused:
            ours.backward(loss)
        else:
            ours.zero_grad()
            loss.backward()
        step()
        zoo.apply(plain, b(x).square().mean())
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.fixture(scope="module")
def tracer_only():
    """torch.compile without code generation, which would take a minute for all rules."""
    real, patch = torch.compile, pytest.MonkeyPatch()
    patch.setattr(rule, "_compiled", {})
    patch.setattr(torch, "compile", lambda fn, **keywords: real(fn, **{**keywords, "backend": "eager"}))
    yield
    patch.undo()


@every
def test_compiled_rules_give_the_same_numbers(case, tracer_only):
    torch.manual_seed(0)
    a = nn.Linear(3, 2, bias=False)
    b = copy.deepcopy(a)
    ours, plain = case.build(a, compile=True), case.build(b)
    for k in range(3):
        x = zoo.batch(k)[:, :3]
        zoo.apply(ours, a(x).square().mean())
        zoo.apply(plain, b(x).square().mean())
    assert rule._compiled
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
