"""Groups by name in an experiment's optimizer, and the single rate that they make of AdamW."""

import copy

import pytest
import torch
import zoo

from lowmem.errors import Misuse
from lowmem.optim import make


def train(model, optimizer, steps=5):
    for step in range(steps):
        optimizer.zero_grad()
        model(zoo.batch(step)).backward()
        optimizer.step()


def test_groups_get_their_own_settings_and_the_rest_those_of_all():
    model = zoo.net()
    groups = {"linear.*": {"lr": 0.5}, "scale": {"weight_decay": 0.0}}
    optimizer = make(model, "adamw", lr=0.1, weight_decay=0.2, groups=groups)
    found = [(g["param_names"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [
        (["linear.weight", "linear.bias"], 0.5, 0.2),
        (["scale"], 0.1, 0.0),
        (["conv.weight"], 0.1, 0.2),
    ]


def test_blocks_stay_known_with_groups():
    model = zoo.net()
    plain, grouped = make(model, "adam_mini", lr=0.1), make(model, "adam_mini", lr=0.1, groups={"scale": {"lr": 0.2}})
    assert all(plain.blocks(p) == grouped.blocks(p) for p in model.parameters())


def test_a_large_eps_makes_adamw_move_by_one_rate_times_momentum():
    model = zoo.net()
    by_hand = copy.deepcopy(model)
    rate, beta = 0.05, 0.9
    optimizer = make(model, "adamw", lr=0.1, weight_decay=0.0, groups={"linear.weight": {"lr": rate * 1e6, "eps": 1e6}})
    train(model, optimizer, 1)
    by_hand(zoo.batch(0)).backward()
    moved = by_hand.linear.weight - rate * by_hand.linear.weight.grad  # bias-corrected momentum of the first step
    torch.testing.assert_close(model.linear.weight, moved, rtol=1e-5, atol=1e-8)
    assert beta == optimizer.param_groups[0]["betas"][0]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(Misuse, match="matches no parameter; names look like"):
        make(zoo.net(), "adamw", lr=0.1, groups={"heads.*": {"lr": 1.0}})
