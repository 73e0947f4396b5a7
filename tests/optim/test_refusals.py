"""Bad input, over every optimizer: refused in one clear sentence that names the parameter, with nothing changed by a bit."""

import pytest
import torch
import zoo
from torch import nn

from lowmem.optim import FusedBackward

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


@every
@pytest.mark.parametrize(
    "wrong",
    [
        dict(lr=-1.0),
        dict(lr=float("nan")),
        dict(lr=float("inf")),
        dict(lr="1e-3"),  # what YAML makes of 1e-3
        dict(lr=None),
        dict(weight_decay=-0.1),
        dict(weight_decay="0.1"),
        dict(weight_decay=None),
    ],
    ids=str,
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


@every
def test_an_unknown_setting_is_refused_with_the_optimizers_name_and_the_nearest_setting(case):
    with pytest.raises(TypeError, match=r"has no setting 'weight_decai' \(did you mean 'weight_decay'\?\)"):
        case.build(zoo.net(), weight_decai=0.1)


OTHER_SETTINGS = [
    ("adamw", dict(betas=(1.0, 0.9))),
    ("adamw", dict(betas=(0.9, -0.1))),
    ("adamw", dict(betas=(0.9,))),
    ("adamw", dict(betas=0.9)),
    ("adamw", dict(betas=("0.9", "0.99"))),
    ("adamw", dict(eps=-1e-8)),
    ("adamw", dict(eps=None)),
    ("adamw", dict(eps="1e-8")),
    ("adamw", dict(eps=float("nan"))),
    ("adamw", dict(eps=(1.0, 2.0))),
    ("adam_mini", dict(betas=(0.9, 1.0))),
    ("adam_mini", dict(reduce="median")),
    ("adam_mini", dict(scheme="v2")),
    ("lamb", dict(betas=(0.9, 1.5))),
    ("lion", dict(betas=(-0.1, 0.9))),
    ("came", dict(betas=(0.9, 0.99))),
    ("came", dict(betas=(0.9, 0.99, 1.0))),
    ("came", dict(clip_threshold=0.0)),
    ("came", dict(clip_threshold=None)),
    ("sm3", dict(beta=1.0)),
    ("sm3", dict(momentum=-0.5)),
    ("sgd", dict(momentum=1.5)),
    ("sgd", dict(dampening=float("nan"))),
    ("sgd", dict(nesterov=True)),
    ("adafactor", dict(eps=(-1.0, 1e-3))),
    ("adafactor", dict(eps=1e-3)),
    ("came", dict(eps=1e-30)),
    ("adafactor", dict(clip_threshold=-1.0)),
    ("adafactor", dict(beta1=1.0)),
    ("adafactor", dict(decay_rate=0.8)),
    ("adafactor", dict(variant="new")),
    ("adafactor", dict(warmup_init=True)),
    ("adamw", dict(rounding="up")),
    ("adamw", dict(nonfinite="hope")),
    ("adamw", dict(state_dtype=torch.int16)),
    ("sgd", dict(state_dtype="int8")),
    ("adamw", dict(state_dtype="int9")),
]


@pytest.mark.parametrize("name, wrong", OTHER_SETTINGS, ids=str)
def test_other_settings_out_of_range_are_refused(name, wrong):
    cls, fixed = zoo.SETTINGS[name]
    with pytest.raises(ValueError, match=next(iter(wrong))):
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
    optimizer = zoo.loose(case, model.named_parameters())

    def act():
        loss = model["linear"](model["table"](torch.tensor([1, 2]))).square().sum()
        if case.fused:
            optimizer.backward(loss)
        else:
            loss.backward()
            optimizer.step()

    zoo.refuses(optimizer, model, RuntimeError, r"table\.weight.*sparse", act)


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

    zoo.refuses(optimizer, model, RuntimeError, name.replace(".", r"\.") + ".*build a new optimizer", act)


@every
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_gradient_raises_or_skips_as_asked(case, poison):
    for answer in ("raise", "skip"):
        model, optimizer = zoo.trained(case, 2, nonfinite=answer)
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
    zoo.refuses(optimizer, model, RuntimeError, r"opt\.backward", lambda: model(zoo.batch(0)).backward())
    optimizer.zero_grad()
    zoo.refuses(optimizer, model, RuntimeError, "step.. before backward", optimizer.step)
    optimizer.backward(model(zoo.batch(0)))
    zoo.refuses(optimizer, model, RuntimeError, "twice without step", lambda: optimizer.backward(model(zoo.batch(1))))
    optimizer.step()
    zoo.refuses(optimizer, model, RuntimeError, "no graph", lambda: optimizer.backward(torch.tensor(1.0)))
    zoo.refuses(
        optimizer, model, (TypeError, RuntimeError), "scalar", lambda: optimizer.backward(lambda: torch.ones(2))
    )
    with optimizer.paused():
        model(zoo.batch(0)).backward()
    zoo.refuses(optimizer, model, RuntimeError, "holds a gradient", lambda: optimizer.backward(model(zoo.batch(0))))
    optimizer.zero_grad()
    zoo.advance(optimizer, model, 2)
