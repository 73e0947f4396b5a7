"""Parameter groups: by name in an experiment, added later, and the single rate that they make of AdamW."""

import copy
import warnings

import pytest
import torch
import zoo

from lowmem import partition
from lowmem.errors import Misuse
from lowmem.optim import AdamMini, FusedBackward, make


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


class Attention(torch.nn.Module):
    """A table, an attention, a layer: three kinds of blocks."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 16)
        self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = torch.nn.Linear(16, 10)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.out(self.attention(x, x, x)[0]).square().mean()


def test_weights_thawed_or_added_later_get_the_blocks_they_have_in_the_model():
    model = Attention()
    want = {name: blocks for name, blocks in zip(dict(model.named_parameters()), partition(model))}
    model.attention.requires_grad_(False)
    later = AdamMini(model, lr=0.1)
    listed = AdamMini([{"params": list(model.parameters())}], model=model, lr=0.1)  # frozen ones too
    assert "attention.in_proj_weight" in later.param_groups[0]["param_names"]
    model.attention.requires_grad_(True)
    later.add_param_group({"params": model.attention.parameters()})  # into a group of their own
    assert "attention.in_proj_weight" not in later.param_groups[0]["param_names"]
    for optimizer in (later, listed):
        assert {name: optimizer.blocks(p) for name, p in model.named_parameters()} == want
    model.extra = torch.nn.Linear(16, 8)
    later.add_param_group({"params": model.extra.parameters()})
    assert later.param_groups[2]["param_names"] == ["extra.weight", "extra.bias"]
    assert later.blocks(model.extra.weight).count == 8


@pytest.mark.parametrize("settings", [dict(value="tensor"), dict(overrides={"out.weight": "tensor"})], ids=str)
def test_later_weights_follow_the_settings_of_the_partition(settings):
    whole, model = Attention(), Attention()
    model.requires_grad_(False).table.requires_grad_(True)
    model.out.requires_grad_(True)
    for optimizer in (AdamMini(model, **settings), AdamMini(partition(model, **settings))):
        optimizer.add_param_group({"params": model.attention.parameters()})
        want = partition(whole, **settings)
        assert all(optimizer.blocks(p) == want[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("wrap", [lambda o: o, FusedBackward], ids=["step", "inside backward"])
def test_a_parameter_outside_the_model_trains_beside_it_and_a_matrix_is_warned_about(wrap):
    model, scale, matrix = Attention(), torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = wrap(AdamMini(model, lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": [scale]})
    with pytest.warns(UserWarning, match="not in the model that the optimizer was built from, so it is one block"):
        optimizer.add_param_group({"params": matrix})
    before = matrix.detach().clone()
    for _ in range(2):
        zoo.apply(optimizer, model(torch.arange(6).view(2, 3)) * scale + matrix.sum())
    assert scale.item() != 1.0
    assert not torch.equal(matrix, before)
