"""What the partition must refuse, with the name and a fix that works."""

import warnings

import pytest
import torch
from block_nets import Attention, Fused, check_suggestion, counts, named
from torch import nn

from lowmem.blocks import Misfit, partition


def without_heads() -> nn.Module:
    attention = Attention()
    del attention.n_head, attention.n_kv_head, attention.head_dim
    return attention


class Multi(nn.Module):
    """The annotated Transformer's way: four linear layers in a list."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])


REFUSED = {
    "expert weights": (lambda: named("Net", a=Attention(), experts=nn.Parameter(torch.randn(3, 4, 5))), "experts"),
    "heads not said": (lambda: nn.ModuleList([without_heads(), without_heads()]), "0.q_proj.weight"),
    "unknown children": (lambda: named("Net", a=named("StrangeAttention", mystery=nn.Linear(8, 24))), "a.mystery.weight"),
    "projections in a list": (lambda: named("Net", a=type("MultiHeadedAttention", (Multi,), {})()), "a.linears.0.weight"),
    "class without a telling name": (
        lambda: named("Net", self_attn=named("Mixer", one=nn.Linear(8, 8), two=nn.Linear(8, 8))), "self_attn.one.weight",
    ),
    "bare projections": (
        lambda: named("Net", a=named("MyAttn", in_proj_weight=nn.Parameter(torch.randn(24, 8)), out=nn.Linear(8, 8))),
        "a.in_proj_weight",
    ),
    "keys and values in one": (
        lambda: named("Net", a=named("CrossAttention", q=nn.Linear(8, 8), kv=nn.Linear(8, 16), n_head=2)), "a.q.weight",
    ),
    "unknown order of a fused projection": (lambda: nn.ModuleList([Fused("query_key_value")]), "0.query_key_value.weight"),
    "projections that are not layers": (
        lambda: named("Net", a=named("Mix", **{n: nn.Sequential(nn.Linear(4, 4)) for n in ("query", "key", "value")})),
        "a.query.0.weight",
    ),
    "a weight in no layer": (
        lambda: named("Net", a=Attention(), own=named("Own", weight=nn.Parameter(torch.randn(3, 4)))), "own.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_structure_is_refused_with_an_override_that_works(name):
    build, parameter = REFUSED[name]
    check_suggestion(build(), parameter)


def test_giving_the_module_its_number_of_heads_is_enough():
    attention = without_heads()
    with pytest.raises(Misfit, match="give it an attribute n_head"):
        partition(nn.ModuleList([attention]))
    attention.n_head = 4
    assert counts(nn.ModuleList([attention]))["0.q_proj.weight"] == 4


@pytest.mark.parametrize(("heads", "size"), [(3, None), (4, 3), (2, 4)])
def test_heads_that_do_not_divide_are_refused(heads, size):
    attention = Attention()
    attention.n_head = attention.n_kv_head = heads
    del attention.head_dim
    if size:
        attention.head_dim = size
    check_suggestion(nn.ModuleList([attention]), "0.q_proj.weight")


def test_a_fused_projection_of_other_rows_is_refused():
    model = nn.ModuleList([Fused("qkv")])
    model[0].num_heads = model[0].num_kv_heads = 5
    check_suggestion(model, "0.qkv.weight")


def test_a_token_model_without_known_attention_is_said_to_be_cut_by_tensors():
    mixer = named("Net", table=nn.Embedding(10, 8), norm=nn.LayerNorm(8), mix=nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="no attention was recognised in Net"):
        assert partition(mixer)["mix.weight"].count == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert partition(mixer, neurons=True)["mix.weight"].count == 8
        partition(named("Recurrent", table=nn.Embedding(10, 8), norm=nn.LayerNorm(8), rnn=nn.LSTM(8, 8)))
        partition(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
