"""Overrides for weights that are frozen, or have no shape yet, when the optimizer is built: kept until they train."""

import contextlib

import pytest
import torch
import zoo
from torch import nn

from lowmem.blocks import Misfit, partition
from lowmem.optim import AdamMini, FusedBackward

SHAPES = {"linear.weight": 4, "linear.bias": 2, "conv.weight": 3}


@pytest.mark.parametrize("frozen", ["linear", "conv", "linear conv scale", ""])
@pytest.mark.parametrize("way", [lambda o: o, FusedBackward], ids=["step", "inside backward"])
def test_an_override_for_a_frozen_weight_counts_when_it_is_thawed(frozen, way):
    model = zoo.net()
    for name in frozen.split():
        getattr(model, name).requires_grad_(False)
    with pytest.warns(UserWarning, match="no trainable") if len(frozen.split()) == 3 else contextlib.nullcontext():
        optimizer = way(AdamMini(model, lr=1e-2, overrides={**SHAPES, "sc*": "tensor"}))
    model.requires_grad_(True)
    zoo.advance(optimizer, model, 0)
    inner = getattr(optimizer, "inner", optimizer)
    found = {name: inner.blocks(p).count for name, p in model.named_parameters() if name in SHAPES}
    assert found == SHAPES


@pytest.mark.parametrize("pattern", ["linear.weight", "linear.*", "l*"])
def test_freezing_what_an_override_names_does_not_stop_others_from_training(pattern):
    model = zoo.net()
    model.conv.requires_grad_(False)
    optimizer = AdamMini(model, lr=1e-2, overrides={pattern: "tensor"})
    zoo.advance(optimizer, model, 0)
    model.linear.requires_grad_(False)
    model.conv.requires_grad_(True)
    before = zoo.snapshot(model)
    zoo.advance(optimizer, model, 1)
    assert not torch.equal(before["conv.weight"], model.conv.weight)


def test_an_override_for_a_lazy_layer_counts_after_its_first_call():
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(6))
    optimizer = AdamMini(model, lr=1e-2, overrides={"1.weight": 3})
    zoo.apply(optimizer, model(torch.ones(2, 3)).square().mean())
    assert optimizer.blocks(model[1].weight).count == 3


def test_a_partition_takes_overrides_of_frozen_weights_and_refuses_names_that_nothing_has():
    model = zoo.net()
    model.linear.requires_grad_(False)
    assert len(partition(model).override({"linear.*": "row"})) == 2
    for call in (
        lambda: partition(model, overrides={"linaer.*": "row"}),
        lambda: partition(model).override({"a": "row"}),
    ):
        with pytest.raises(Misfit, match="matches no parameter; names look like 'scale'"):
            call()
