"""Networks that are not Transformers: one block per tensor, the rule of the paper."""

import pytest
import torch
from block_nets import Attention, Fused, check_suggestion, counts, named
from torch import nn

from lowmem.blocks import partition


class GraphAttention(nn.Module):
    """The parameters of a graph attention layer: one linear map and two bare attention vectors."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 8, bias=False)
        self.att_src, self.att_dst = (nn.Parameter(torch.randn(1, 2, 4)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(8))


OTHERS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
    "conv net": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 2)
    ),
    "lstm": lambda: nn.ModuleList([nn.Embedding(5, 4, padding_idx=0), nn.LSTM(4, 6, proj_size=3), nn.Linear(3, 5)]),
    "bags and bilinear maps": lambda: nn.ModuleList([nn.EmbeddingBag(5, 4), nn.Bilinear(3, 4, 5)]),
    "graph attention": lambda: nn.ModuleList([GraphAttention(), GraphAttention()]),
    "bare tensors": lambda: nn.ParameterList(
        [torch.randn(()), torch.randn(3), torch.randn(2, 3), torch.randn(2, 3, 4, 5)]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_have_one_block_per_tensor(name):
    model = OTHERS[name]()
    for blocks in partition(model):
        is_bias = "bias" in blocks.name
        assert blocks.count == (blocks.numel if is_bias else 1), blocks.name
    assert {blocks.count for blocks in partition(model, biases="tensor")} == {1}


def test_neurons_true_cuts_any_network_by_output_neuron():
    model = nn.ModuleList(
        [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(3, 5, 2), nn.LSTM(4, 6), nn.Linear(4, 7), nn.Bilinear(2, 3, 4)]
    )
    found = counts(model, neurons=True)
    assert (found["0.weight"], found["1.weight"], found["3.weight"], found["4.weight"]) == (8, 5, 7, 4)
    assert found["2.weight_ih_l0"] == found["2.weight_hh_l0"] == 24
    assert partition(model, neurons=True)["1.weight"].axis == 1


def test_attention_beside_convolutions_is_cut_by_head_and_filters_stay_whole():
    model = named(
        "Vision", patches=nn.Conv2d(3, 16, 4), pos_embed=nn.Parameter(torch.randn(1, 9, 16)),
        cls_token=nn.Parameter(torch.randn(1, 1, 16)), attn=Fused(), scale=nn.Parameter(torch.randn(16, 1, 1)),
    )  # fmt: skip
    found = counts(model)
    assert (found["patches.weight"], found["pos_embed"], found["cls_token"], found["scale"]) == (1, 9, 1, 1)
    assert found["attn.qkv.weight"] == 4 + 4 + 16
    assert counts(model, neurons=True)["patches.weight"] == 16


@pytest.mark.parametrize("name", ["register_tokens", "reg_token", "query_tokens", "mask_tokens", "level_embed"])
def test_learned_tokens_have_a_block_each(name):
    model = nn.Module()
    model.attention = nn.MultiheadAttention(16, 4)
    model.register_parameter(name, nn.Parameter(torch.randn(1, 3, 16)))
    assert (partition(model)[name].kind, partition(model)[name].count) == ("token", 3)
    assert partition(model, embedding="tensor")[name].count == 1


def test_attention_made_of_convolutions_is_cut_by_head_when_separate_and_refused_when_fused():
    separate = named("AttnBlock", **{name: nn.Conv2d(8, 8, 1) for name in ("q", "k", "v", "proj_out")})
    separate.num_heads = 2
    found = counts(nn.ModuleList([separate]))
    assert (found["0.q.weight"], found["0.k.weight"], found["0.v.weight"], found["0.proj_out.weight"]) == (2, 2, 8, 1)
    fused = named("AttentionBlock", qkv=nn.Conv1d(8, 24, 1))
    fused.num_heads = 2
    check_suggestion(nn.ModuleList([fused]), "0.qkv.weight")


def test_empty_and_zero_dimensional_parameters_are_placed():
    model = named(
        "Net",
        attention=Attention(),
        gain=nn.Parameter(torch.tensor(1.0)),
        logit_scale=nn.Parameter(torch.ones(4, 1, 1)),
    )
    assert counts(model)["gain"] == 1 and counts(model)["logit_scale"] == 1
    assert len(partition(nn.Identity())) == 0 and "0 parameters" in str(partition(nn.Identity()))
