"""The partition of Transformers: own and torch models, any names and wrappers, adapters and parametrizations."""

import copy
import itertools
import re

import pytest
import torch
from block_nets import Attention, Fused, check_suggestion, counts, named, tiny_gpt2, tiny_llama
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lowmem.blocks import partition
from lowmem.models import llama


def test_gpt2_counts_by_hand():
    found = counts(tiny_gpt2(bias=True))
    assert found["tokens.weight"] == 20 and found["positions.weight"] == 8 and "head.weight" not in found
    layer = {name.removeprefix("blocks.1."): count for name, count in found.items() if name.startswith("blocks.1.")}
    assert layer == {
        "norm1.weight": 1, "norm1.bias": 16, "norm2.weight": 1, "norm2.bias": 16,
        "attention.wq.weight": 4, "attention.wk.weight": 4, "attention.wv.weight": 16, "attention.wo.weight": 16,
        "attention.wq.bias": 16, "attention.wk.bias": 16, "attention.wv.bias": 16, "attention.wo.bias": 16,
        "mlp.up.weight": 64, "mlp.up.bias": 64, "mlp.down.weight": 16, "mlp.down.bias": 16,
    }  # fmt: skip


def test_llama_counts_by_hand_with_fewer_key_heads_and_a_wide_head():
    found = counts(tiny_llama())
    assert (found["tokens.weight"], found["head.weight"], found["norm.weight"]) == (20, 20, 1)
    names = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "mlp.gate", "mlp.up", "mlp.down", "norm1")
    layer = [found[f"blocks.0.{name}.weight"] for name in names]
    assert layer == [4, 2, 16, 16, 24, 24, 16, 1]


def test_llama2_7b_has_the_published_number_of_scalars():
    with torch.device("meta"):
        model = llama.build("llama2-7b")
    assert partition(model).scalars == 1_163_841
    per_layer, tables = (
        32 + 32 + 5 + 2,
        2 * 32000 * 4096,
    )  # version 1.0: heads, five whole matrices, norms; tables as Adam
    assert partition(model, scheme="v1.0").scalars == 32 * per_layer + 1 + tables
    assert partition(model, scheme="tensor").scalars == len(list(model.parameters()))


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 4), key_heads=st.integers(1, 4), size=st.integers(1, 5), width=st.integers(1, 12))
def test_any_grouped_query_shape_has_one_block_per_head(groups, key_heads, size, width):
    heads = groups * key_heads
    assume(heads == 1 or heads * heads * size != width)  # refused: looks as if all heads shared their queries
    model = nn.ModuleList([Attention(width, heads, key_heads, head_dim=size)])
    found = counts(model)
    assert found["0.q_proj.weight"] == groups * key_heads and found["0.k_proj.weight"] == key_heads
    assert found["0.v_proj.weight"] == key_heads * size and found["0.out.weight"] == width


@pytest.mark.parametrize("separate", [False, True])
def test_torch_attention_fused_or_with_other_key_and_value_widths(separate):
    attention = nn.MultiheadAttention(12, 3, add_bias_kv=True, **(dict(kdim=5, vdim=7) if separate else {}))
    found = counts(attention)
    assert found["bias_k"] == found["bias_v"] == 12 and found["in_proj_bias"] == 36 and found["out_proj.weight"] == 12
    if separate:
        assert [found[f"{n}_proj_weight"] for n in "qkv"] == [3, 3, 12]
    else:
        blocks = partition(attention)["in_proj_weight"]
        assert blocks.count == 3 + 3 + 12 and blocks.segments == ((0, 24, 4), (24, 36, 1))


def test_torch_attention_blocks_are_heads_by_what_they_move():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, bias=False, batch_first=True).eval()
    nn.init.eye_(attention.out_proj.weight)  # the heads side by side come out as they are
    x = torch.randn(1, 5, 12)
    before = attention(x, x, x)[0]
    for row, head in itertools.product(range(2), range(3)):
        changed = copy.deepcopy(attention)
        with torch.no_grad():
            changed.in_proj_weight[12 * row + 4 * head] += 1  # one row of a query (0) or a key (1)
        moved = ((changed(x, x, x)[0] - before).abs().amax((0, 1)) > 1e-6).nonzero().flatten().tolist()
        assert moved == [4 * head, 4 * head + 1, 4 * head + 2, 4 * head + 3]


@pytest.mark.parametrize("build", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_torch_transformer_layers_are_placed_whole(build):
    layer = build(12, 3, dim_feedforward=20)
    found = counts(layer)
    assert found["self_attn.in_proj_weight"] == 18 and found["linear1.weight"] == 20 and found["linear2.weight"] == 12
    assert found["norm1.weight"] == 1 and len(found) == len(list(layer.parameters()))
    if build is nn.TransformerDecoderLayer:
        assert found["multihead_attn.in_proj_weight"] == 18


TRIOS = [
    ("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("W_q", "W_k", "W_v"), ("WQ", "WK", "WV"), ("query", "key", "value"),
    ("queries", "keys", "values"), ("to_q", "to_k", "to_v"), ("q_lin", "k_lin", "v_lin"), ("linear_q", "linear_k", "linear_v"),
    ("q", "k", "v"), ("w_qs", "w_ks", "w_vs"), ("query_proj", "key_proj", "value_proj"), ("lin_query", "lin_key", "lin_value"),
]  # fmt: skip


@pytest.mark.parametrize("names", TRIOS, ids=lambda names: names[0])
def test_projections_are_found_under_their_usual_names(names):
    found = counts(named("Mixer", inner=Attention(names=names)))
    assert [found[f"inner.{name}.weight"] for name in names] == [4, 4, 16]


@pytest.mark.parametrize("name", ["qkv", "Wqkv", "c_attn", "qkv_proj", "to_qkv"])
def test_fused_projections_are_found_under_their_usual_names(name):
    found = partition(nn.ModuleList([Fused(name, key_heads=2)]))[f"0.{name}.weight"]
    assert found.segments == ((0, 24, 4), (24, 32, 1)) and found.kind == "mixed"


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: nn.Sequential(m), lambda m: nn.ModuleList([m])]
)
def test_wrapped_models_keep_their_blocks(wrap):
    model = tiny_llama()
    expected = [blocks.count for blocks in partition(model)]
    assert [blocks.count for blocks in partition(wrap(model))] == expected


def test_wrapping_the_inner_attention_keeps_blocks_and_true_names():
    model = named("Decoder", attention=torch.compile(Attention()))
    assert counts(model)["attention._orig_mod.q_proj.weight"] == 4
    lost = Attention()
    del lost.n_head, lost.n_kv_head, lost.head_dim
    check_suggestion(named("Decoder", attention=torch.compile(lost)), "attention._orig_mod.q_proj.weight")


@pytest.mark.parametrize("wrap", [torch.compile, checkpoint_wrapper], ids=["compiled", "checkpointed"])
def test_a_wrapped_projection_keeps_its_heads(wrap):
    attention = Attention()
    attention.q_proj, attention.v_proj = wrap(attention.q_proj), wrap(attention.v_proj)
    found = {re.sub(r"_\w+_mod(ule)?\.", "", name): count for name, count in counts(nn.ModuleList([attention])).items()}
    assert (found["0.q_proj.weight"], found["0.k_proj.weight"], found["0.v_proj.weight"]) == (4, 4, 16)


def test_a_projection_inside_a_wrapper_nobody_knows_is_refused():
    class Wrapper(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.hidden, self.in_features, self.out_features = layer, layer.in_features, layer.out_features

    attention = Attention()
    attention.k_proj = Wrapper(attention.k_proj)
    check_suggestion(nn.ModuleList([attention]), "0.k_proj.hidden.weight")


def test_tied_and_shared_weights_are_claimed_once_as_tables():
    model = tiny_gpt2()
    assert partition(model)["tokens.weight"].kind == "token" and len(list(model.parameters())) == len(partition(model))
    swapped = nn.ModuleDict(
        {"head": nn.Linear(16, 20, bias=False), "tokens": nn.Embedding(20, 16), "attention": Attention()}
    )
    swapped["tokens"].weight = swapped["head"].weight  # the output layer is registered first
    found = partition(swapped, scheme="v1.0", embedding="row")
    assert found["head.weight"].kind == "token" and found["head.weight"].count == 20
    assert counts(swapped, overrides={"tokens.weight": "tensor"})["head.weight"] == 1, "any of its names will do"


def test_a_module_used_several_times_is_claimed_once():
    attention = Attention()
    assert len(partition(nn.ModuleList([attention, attention, nn.Linear(16, 16, bias=False)]))) == 5


def test_frozen_parameters_are_left_out():
    model = tiny_llama()
    model.tokens.requires_grad_(False)
    model.blocks[0].attention.requires_grad_(False)
    found = counts(model)
    assert "tokens.weight" not in found and not any(name.startswith("blocks.0.attention") for name in found)
    assert found["blocks.1.attention.wq.weight"] == 4


def test_frozen_attention_of_unknown_shape_does_not_matter():
    model = named("Net", attention=named("OddAttention", a=nn.Linear(4, 12), b=nn.Linear(4, 4)), head=nn.Linear(4, 2))
    model.attention.requires_grad_(False)
    assert counts(model) == {"head.weight": 2, "head.bias": 2}


def test_output_layer_is_what_the_model_says_also_inside_a_wrapper():
    inner = named(
        "LanguageModel", embed=nn.Embedding(20, 16), attention=Attention(), logits_of=nn.Linear(16, 20, bias=False)
    )
    inner.get_output_embeddings = lambda: inner.logits_of
    found = partition(nn.Sequential(inner), output="tensor")
    assert found["0.logits_of.weight"].count == 1 and found["0.embed.weight"].count == 20


class Lora(nn.Module):
    """A wrapped linear layer of the shape that peft gives it."""

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        rows = getattr(base, "nf", None) or base.out_features
        columns = base.weight.shape[0] if hasattr(base, "nf") else base.in_features
        self.base_layer = base.requires_grad_(False)
        self.in_features, self.out_features = columns, rows
        self.lora_A = nn.ModuleDict({"default": nn.Linear(columns, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, rows, bias=False)})

    @property
    def weight(self):
        return self.base_layer.weight


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_adapters_of_any_rank_follow_the_heads_of_their_projection(rank):
    model = tiny_llama().requires_grad_(False)
    for block in model.blocks:
        for name in ("wq", "wk", "wv"):
            setattr(block.attention, name, Lora(getattr(block.attention, name), rank))
        block.mlp.up = Lora(block.mlp.up, rank)
    found = counts(model)
    assert len(found) == 2 * 4 * 2
    for name, count in {"wq": 4, "wk": 2, "wv": 16}.items():
        assert found[f"blocks.1.attention.{name}.lora_B.default.weight"] == count
        assert found[f"blocks.1.attention.{name}.lora_A.default.weight"] == rank
    assert found["blocks.1.mlp.up.lora_B.default.weight"] == 24


def test_adapters_on_a_fused_projection_follow_its_parts():
    model = nn.ModuleList([Fused("qkv")])
    model[0].qkv = Lora(model[0].qkv, 3)
    blocks = partition(model)["0.qkv.lora_B.default.weight"]
    assert blocks.segments == ((0, 32, 4), (32, 48, 1)) and blocks.count == 8 + 16


def test_adapters_on_a_transposed_projection_lie_along_rows():
    from transformers.pytorch_utils import Conv1D as conv1d

    attention = named("Attention", c_attn=Lora(conv1d(48, 16), 2), c_proj=conv1d(16, 16))
    attention.num_heads = 4
    blocks = partition(nn.ModuleList([attention]))
    assert blocks["0.c_attn.lora_B.default.weight"].axis == 0 and blocks["0.c_attn.lora_B.default.weight"].count == 24
    assert blocks["0.c_proj.weight"].axis == 1 and blocks["0.c_proj.weight"].count == 16


def test_weight_norm_and_spectral_norm_keep_the_blocks_of_the_matrix():
    attention = Attention()
    nn.utils.parametrizations.weight_norm(attention.q_proj)
    nn.utils.parametrizations.spectral_norm(attention.k_proj)
    nn.utils.weight_norm(attention.v_proj)
    found = counts(nn.ModuleList([attention]))
    assert found["0.q_proj.parametrizations.weight.original1"] == 4
    assert found["0.q_proj.parametrizations.weight.original0"] == 1
    assert found["0.k_proj.parametrizations.weight.original"] == 4
    assert found["0.v_proj.weight_v"] == 16 and found["0.v_proj.weight_g"] == 1


def test_another_parametrization_of_a_transformer_is_asked_about():
    attention = Attention()
    nn.utils.parametrizations.orthogonal(attention.q_proj)
    check_suggestion(nn.ModuleList([attention]), "0.q_proj.parametrizations.weight.original")
