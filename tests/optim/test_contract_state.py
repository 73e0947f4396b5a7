"""What every optimizer's state dictionary and copies must do."""

import copy
import io
import pickle

import pytest
import torch
import zoo
from torch import nn

from lowmem.optim import AdamMini, FusedBackward

every = pytest.mark.parametrize("case", zoo.ALL, ids=lambda case: case.name)


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
    model, optimizer = zoo.trained(case, 3, dtype, **keywords)
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
    _, optimizer = zoo.trained(case)
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
    model, optimizer = zoo.trained(case)
    other, copied = how((model, optimizer))
    zoo.train(optimizer, model, 2, start=3)
    middle = zoo.snapshot(model)
    zoo.train(copied, other, 2, start=3)
    assert zoo.same(middle, zoo.snapshot(other))
    assert zoo.same(middle, zoo.snapshot(model))
    assert repr(copied) == repr(optimizer)


@every
def test_state_of_other_groups_without_names_or_another_number_of_parameters_is_refused(case):
    model, optimizer = zoo.trained(case)
    two = zoo.net()
    other = case.build(
        [{"params": list(two.linear.parameters())}, {"params": [two.scale, *two.conv.parameters()]}], model=two
    )
    saved = other.state_dict()
    for group in saved["param_groups"]:
        del group["param_names"]
    zoo.refuses(optimizer, model, ValueError, "2 parameter groups of", lambda: optimizer.load_state_dict(saved))
    short = zoo.loose(case, [nn.Parameter(torch.ones(3))])
    zoo.refuses(optimizer, model, ValueError, "parameters", lambda: optimizer.load_state_dict(short.state_dict()))


@every
def test_state_of_other_shapes_is_refused_by_the_parameters_name(case):
    model, optimizer = zoo.trained(case)
    wide = zoo.net()
    wide.linear = nn.Linear(7, 4)
    saved = case.build(wide)
    zoo.feed(case, saved, list(wide.parameters()), [torch.ones_like(p) for p in wide.parameters()])
    if not any(v.ndim for v in zoo.state_tensors(saved).values()):
        optimizer.load_state_dict(saved.state_dict())  # no moments: nothing that could misfit
        assert zoo.state_tensors(optimizer).keys() == zoo.state_tensors(saved).keys()
        return
    zoo.refuses(optimizer, model, ValueError, r"linear\.weight", lambda: optimizer.load_state_dict(saved.state_dict()))


def test_state_of_another_partition_is_refused_by_the_parameters_name():
    model = zoo.language_model()
    rows, table = AdamMini(model, lr=1e-2), AdamMini(model, lr=1e-2, value="tensor")
    zoo.apply(table, zoo.language_loss(model, 0))
    match = r"blocks\.0\.attention\.wv\.weight.*same partition settings"
    zoo.refuses(rows, model, ValueError, match, lambda: rows.load_state_dict(table.state_dict()))
    fused = FusedBackward(AdamMini(model, lr=1e-2))
    zoo.refuses(fused, model, ValueError, match, lambda: fused.load_state_dict(table.state_dict()))
