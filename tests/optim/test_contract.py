"""What every optimizer of the package promises as a torch.optim.Optimizer: one file, every optimizer, nothing left out."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import zoo
from torch import nn
from torch.optim import lr_scheduler

from lowmem.optim import AdamMini, FusedBackward, stages

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


def trained(case, steps=3, dtype=torch.float32, **keywords):
    model = zoo.net(dtype)
    optimizer = case.build(model, **keywords)
    zoo.train(optimizer, model, steps)
    return model, optimizer


def refuses(optimizer, model, error, match, act):
    """`act` raises, and neither weights nor state changed by a bit."""
    weights, state = zoo.snapshot(model), zoo.state_tensors(optimizer)
    with pytest.raises(error, match=match):
        act()
    assert zoo.same(weights, zoo.snapshot(model))
    assert zoo.same(state, zoo.state_tensors(optimizer))


def feed(case, optimizer, parameters, gradients):
    """One step on gradients given by hand, also for optimizers that work inside backward."""
    if case.fused:
        optimizer.backward(sum((p * g).sum() for p, g in zip(parameters, gradients)))
    else:
        for p, g in zip(parameters, gradients):
            p.grad = g.clone(memory_format=torch.preserve_format)
    optimizer.step()


def loose(case, parameters, **keywords):
    """An optimizer over bare parameters; the advice that comes with it is not the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return case.build(parameters, **keywords)


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
    feed(case, loose(case, low, state_dtype=torch.float32), low, gradients)
    feed(case, loose(case, high), high, [g.float() for g in gradients])
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
    ours, other = loose(case, a), loose(case, b)
    for step in range(3):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(dtype) for p in plain]
        feed(case, ours, a, gradients)
        feed(case, other, b, [gradients[0].t().contiguous().t(), gradients[1]])
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert not q.is_contiguous()


@every
def test_empty_tensors_and_scalars_train(case):
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((0,), (3, 0), (0, 4), (), (1,), (2, 2))]
    optimizer = loose(case, parameters)
    for _ in range(2):
        feed(case, optimizer, parameters, [torch.full_like(p, 0.5) for p in parameters])
    assert all((p < 1).all() and p.isfinite().all() for p in parameters)


@every
def test_zero_gradients_neither_move_nor_break(case):
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((), (3,), (2, 3))]
    optimizer = loose(case, parameters)
    for _ in range(2):
        feed(case, optimizer, parameters, [torch.zeros_like(p) for p in parameters])
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
    optimizer = loose(case, listed.named_parameters() if named else listed.parameters())
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
    model, optimizer = trained(case, 0)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    zoo.train(optimizer, model, 2)
    assert calls == ["before", "after"] * 2


@every
def test_zero_grad_clears(case):
    model, optimizer = trained(case, 1)
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
    patch.setattr(stages, "_compiled", {})
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
    assert stages._compiled
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


# -- state ------------------------------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("saved", [lambda s: s, copy.deepcopy, through_a_file], ids=["live", "copied", "file"])
def test_state_round_trip_is_bit_equal_and_goes_on_alike(case, dtype, saved):
    keywords = dict(state_dtype=torch.float32) if dtype == torch.bfloat16 else {}
    model, optimizer = trained(case, 3, dtype, **keywords)
    other = copy.deepcopy(model)
    loaded = case.build(other, **keywords)
    loaded.load_state_dict(saved(optimizer.state_dict()))
    assert zoo.same(zoo.state_tensors(optimizer), zoo.state_tensors(loaded))
    dtypes = [{k: v.dtype for k, v in zoo.state_tensors(o).items()} for o in (optimizer, loaded)]
    assert dtypes[0] == dtypes[1]
    zoo.train(optimizer, model, 3, start=3)
    zoo.train(loaded, other, 3, start=3)
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(other))


@every
def test_a_loaded_state_shares_no_memory_with_the_saved_one(case):
    _, optimizer = trained(case)
    saved = optimizer.state_dict()
    other = zoo.net()
    loaded = case.build(other)
    loaded.load_state_dict(saved)
    kept = zoo.state_tensors(optimizer)
    zoo.train(loaded, other, 1)
    assert zoo.same(kept, zoo.state_tensors(optimizer))


@every
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_alone(case, how):
    model, optimizer = trained(case)
    other, copied = how((model, optimizer))
    zoo.train(optimizer, model, 2, start=3)
    middle = zoo.snapshot(model)
    zoo.train(copied, other, 2, start=3)
    assert zoo.same(middle, zoo.snapshot(other))
    assert zoo.same(middle, zoo.snapshot(model))
    assert repr(copied) == repr(optimizer)


@every
def test_state_of_another_number_of_groups_or_parameters_is_refused(case):
    model, optimizer = trained(case)
    two = zoo.net()
    other = case.build(
        [{"params": list(two.linear.parameters())}, {"params": [two.scale, *two.conv.parameters()]}], model=two
    )
    refuses(optimizer, model, ValueError, "group", lambda: optimizer.load_state_dict(other.state_dict()))
    short = loose(case, [nn.Parameter(torch.ones(3))])
    refuses(optimizer, model, ValueError, "parameters", lambda: optimizer.load_state_dict(short.state_dict()))


@every
def test_state_of_other_shapes_is_refused_by_the_parameters_name(case):
    model, optimizer = trained(case)
    wide = zoo.net()
    wide.linear = nn.Linear(7, 4)
    saved = case.build(wide)
    feed(case, saved, list(wide.parameters()), [torch.ones_like(p) for p in wide.parameters()])
    if not any(v.ndim for v in zoo.state_tensors(saved).values()):
        optimizer.load_state_dict(saved.state_dict())  # no moments: nothing that could misfit
        assert zoo.state_tensors(optimizer).keys() == zoo.state_tensors(saved).keys()
        return
    refuses(optimizer, model, ValueError, r"linear\.weight", lambda: optimizer.load_state_dict(saved.state_dict()))


def test_state_of_another_partition_is_refused_by_the_parameters_name():
    model = zoo.language_model()
    rows, table = AdamMini(model, lr=1e-2), AdamMini(model, lr=1e-2, value="tensor")
    zoo.apply(table, zoo.language_loss(model, 0))
    match = r"blocks\.0\.attention\.wv\.weight.*same partition settings"
    refuses(rows, model, ValueError, match, lambda: rows.load_state_dict(table.state_dict()))
    fused = FusedBackward(AdamMini(model, lr=1e-2))
    refuses(fused, model, ValueError, match, lambda: fused.load_state_dict(table.state_dict()))


# -- bad input --------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    "wrong", [dict(lr=-1.0), dict(lr=float("nan")), dict(lr=float("inf")), dict(weight_decay=-0.1)], ids=str
)
def test_settings_out_of_range_are_refused_by_name(case, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        case.build(zoo.net(), **wrong)


@every
@pytest.mark.parametrize("wrong", [dict(lr=-1.0), dict(weight_decay=float("nan"))], ids=str)
def test_groups_out_of_range_are_refused_by_name(case, wrong):
    model = zoo.net()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        case.build([{"params": list(model.parameters()), **wrong}], model=model)


OTHER_SETTINGS = [
    ("adamw", dict(betas=(1.0, 0.9))),
    ("adamw", dict(betas=(0.9, -0.1))),
    ("adamw", dict(betas=(0.9,))),
    ("adamw", dict(eps=-1e-8)),
    ("adamw", dict(eps=float("nan"))),
    ("adam_mini", dict(betas=(0.9, 1.0))),
    ("adam_mini", dict(reduce="median")),
    ("adam_mini", dict(scheme="v2")),
    ("lamb", dict(betas=(0.9, 1.5))),
    ("lion", dict(betas=(-0.1, 0.9))),
    ("came", dict(betas=(0.9, 0.99))),
    ("came", dict(betas=(0.9, 0.99, 1.0))),
    ("came", dict(clip_threshold=0.0)),
    ("sm3", dict(beta=1.0)),
    ("sm3", dict(momentum=-0.5)),
    ("sgd", dict(momentum=1.5)),
    ("sgd", dict(dampening=float("nan"))),
    ("sgd", dict(nesterov=True)),
    ("adafactor", dict(eps=(-1.0, 1e-3))),
    ("adafactor", dict(clip_threshold=-1.0)),
    ("adafactor", dict(beta1=1.0)),
    ("adafactor", dict(decay_rate=0.8)),
    ("adafactor", dict(variant="new")),
    ("adafactor", dict(warmup_init=True)),
    ("adamw", dict(rounding="up")),
    ("adamw", dict(nonfinite="hope")),
    ("adamw", dict(state_dtype=torch.int8)),
]


@pytest.mark.parametrize("name, wrong", OTHER_SETTINGS, ids=str)
def test_other_settings_out_of_range_are_refused(name, wrong):
    cls, fixed = zoo.SETTINGS[name]
    with pytest.raises(ValueError, match=next(iter(wrong)) if name != "came" else "betas|clip_threshold"):
        cls(zoo.net(), **{**fixed, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_grad_norm=0.0),
        dict(clip_value=-1.0),
        dict(grouped_norm=0.0),
        dict(loss_scale=-2.0),
        dict(loss_scale="big"),
    ],
    ids=str,
)
def test_fused_settings_out_of_range_are_refused(wrong):
    cls, fixed = zoo.SETTINGS["adamw"]
    model = zoo.net()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusedBackward(cls(model, **fixed), **wrong)
    model(zoo.batch(0)).backward()  # no hook was left behind


@every
def test_a_parameter_in_two_groups_is_refused(case):
    model = zoo.net()
    twice = [{"params": [model.linear.weight]}, {"params": [model.linear.weight, model.scale]}]
    with pytest.raises(ValueError, match="more than one parameter group"):
        case.build(twice, model=model)


@every
def test_a_model_without_trainable_parameters_warns_and_does_nothing(case):
    model = zoo.net().requires_grad_(False)
    with pytest.warns(UserWarning, match="no trainable parameter"):
        optimizer = case.build(model)
    before = zoo.snapshot(model)
    if case.fused:
        free = torch.ones((), requires_grad=True)
        optimizer.backward(model(zoo.batch(0)) * free)
    optimizer.step()
    assert zoo.same(before, zoo.snapshot(model))


@every
def test_a_group_without_parameters_is_allowed(case):
    model = zoo.net()
    optimizer = case.build([{"params": []}, {"params": list(model.parameters())}], model=model)
    before = zoo.snapshot(model)
    zoo.train(optimizer, model, 1)
    assert not zoo.same(before, zoo.snapshot(model))


@every
def test_complex_parameters_are_refused_by_name(case):
    model = nn.Module()
    model.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"wave.*complex"):
        case.build(model)


@every
def test_sparse_gradients_are_refused_by_name(case):
    model = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "linear": nn.Linear(3, 1)})
    optimizer = loose(case, model.named_parameters())

    def act():
        loss = model["linear"](model["table"](torch.tensor([1, 2]))).square().sum()
        if case.fused:
            optimizer.backward(loss)
        else:
            loss.backward()
            optimizer.step()

    refuses(optimizer, model, RuntimeError, r"table\.weight.*sparse", act)


def _resize(model):
    model.linear.weight.data = torch.ones(4, 5)
    model.linear.weight.grad = None


def _replace(model):
    model.linear.weight = nn.Parameter(torch.ones(4, 3))


def _remove(model):
    del model.conv
    model.conv = lambda image: image


@every
@pytest.mark.parametrize(
    "change, name", [(_resize, "linear.weight"), (_replace, "linear.weight"), (_remove, "conv.weight")]
)
def test_a_model_changed_after_construction_is_refused_by_the_parameters_name(case, change, name):
    model = zoo.net()
    optimizer = case.build(model)
    change(model)
    data = zoo.batch(0)

    def act():
        width = model.linear.weight.shape[1]
        loss = (
            model.linear(torch.ones(2, width)).square().sum() * model.scale
            + model.conv(data[:, :18].reshape(-1, 2, 3, 3)).mean()
        )
        if case.fused:
            optimizer.backward(loss)
        else:
            loss.backward()
            optimizer.step()

    refuses(optimizer, model, RuntimeError, name.replace(".", r"\.") + ".*build a new optimizer", act)


@every
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_gradient_raises_or_skips_as_asked(case, poison):
    for answer in ("raise", "skip"):
        model, optimizer = trained(case, 2, nonfinite=answer)
        weights, state = zoo.snapshot(model), zoo.state_tensors(optimizer)
        image = zoo.batch(0)[:, 3:].reshape(-1, 2, 3, 3)

        def loss(model=model, image=image):
            fine = (model.linear(torch.ones(1, 3)) * model.scale).square().sum()
            return fine + (model.conv(image) * poison).sum()

        if answer == "raise":
            name = "" if case.fused else r"conv\.weight.*"
            with pytest.raises(FloatingPointError, match=name + "nothing was updated"):
                zoo.apply(optimizer, loss())
        else:
            zoo.apply(optimizer, loss())
        assert zoo.same(weights, zoo.snapshot(model))
        assert zoo.same(state, zoo.state_tensors(optimizer))
        zoo.train(optimizer, model, 1) if answer == "skip" else None
        assert all(p.isfinite().all() for p in model.parameters())


@every
def test_common_mistakes_of_the_fused_interface_are_refused_before_anything_moves(case):
    model = zoo.net()
    optimizer = case.build(model)
    if not case.fused:
        assert not hasattr(optimizer, "backward")  # so that nobody mistakes the one kind for the other
        return
    refuses(optimizer, model, RuntimeError, r"opt\.backward", lambda: model(zoo.batch(0)).backward())
    optimizer.zero_grad()
    refuses(optimizer, model, RuntimeError, "step.. before backward", optimizer.step)
    optimizer.backward(model(zoo.batch(0)))
    refuses(optimizer, model, RuntimeError, "twice without step", lambda: optimizer.backward(model(zoo.batch(1))))
    optimizer.step()
    refuses(optimizer, model, RuntimeError, "no graph", lambda: optimizer.backward(torch.tensor(1.0)))
    refuses(optimizer, model, (TypeError, RuntimeError), "scalar", lambda: optimizer.backward(lambda: torch.ones(2)))
    with optimizer.paused():
        model(zoo.batch(0)).backward()
    refuses(optimizer, model, RuntimeError, "holds a gradient", lambda: optimizer.backward(model(zoo.batch(0))))
    optimizer.zero_grad()
    zoo.advance(optimizer, model, 2)
