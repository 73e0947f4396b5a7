"""The partition of models without Hugging Face: this package's, torch's own layers, wrappers, adapters, unusual names,
other kinds of networks, and what must be refused.
"""

import ast
import copy
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lowmem.blocks import Misfit, ParamBlocks, partition
from lowmem.models import gpt2, llama
from lowmem.optim import AdamMini


def counts(model: nn.Module, **keywords) -> dict[str, int]:
    return {blocks.name: blocks.count for blocks in partition(model, **keywords)}


def tiny_gpt2(**changes) -> nn.Module:
    return gpt2.build(**{**dict(n_layer=2, n_head=4, n_embd=16, vocab_size=20, block_size=8), **changes})


def tiny_llama(**changes) -> nn.Module:
    shape = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24, vocab_size=20, block_size=8, head_dim=8)
    return llama.build(**{**shape, **changes})


class Attention(nn.Module):
    """Attention with separate projections under any three names."""

    def __init__(
        self, width=16, heads=4, key_heads=None, names=("q_proj", "k_proj", "v_proj"), head_dim=None, bias=False
    ):
        super().__init__()
        self.n_head, self.n_kv_head = heads, key_heads or heads
        self.head_dim = head_dim or width // heads
        rows = (heads * self.head_dim, self.n_kv_head * self.head_dim, self.n_kv_head * self.head_dim)
        for name, size in zip(names, rows):
            setattr(self, name, nn.Linear(width, size, bias=bias))
        self.out = nn.Linear(rows[0], width, bias=bias)


class Fused(nn.Module):
    """Attention with one projection, called as asked."""

    def __init__(self, name="qkv", width=16, heads=4, key_heads=4):
        super().__init__()
        self.num_heads, self.num_kv_heads = heads, key_heads
        setattr(self, name, nn.Linear(width, width + 2 * key_heads * (width // heads)))
        self.out = nn.Linear(width, width)


def named(name: str, *bases, **children) -> nn.Module:
    """A module of a class called `name` with these children and parameters."""
    module = type(name, bases or (nn.Module,), {})()
    for key, child in children.items():
        setattr(module, key, child)
    return module


# -- this package's and torch's models ---------------------------------------------------------------------------------


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
    model = nn.ModuleList([Attention(width, groups * key_heads, key_heads, head_dim=size)])
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


# -- names and wrappers ------------------------------------------------------------------------------------------------

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


# -- adapters and parametrizations -------------------------------------------------------------------------------------


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


# -- other networks: one block per tensor, the paper's rule --------------------------------------------------------------


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


# -- schemes, switches, overrides ----------------------------------------------------------------------------------------


def test_version_1_0_keeps_adam_for_tables_and_one_block_for_all_but_queries_and_keys():
    model = tiny_llama()
    found = counts(model, scheme="v1.0")
    assert found["tokens.weight"] == found["head.weight"] == 20 * 16
    assert found["blocks.0.attention.wq.weight"] == 4 and found["blocks.0.attention.wk.weight"] == 2
    assert {found[f"blocks.0.{n}.weight"] for n in ("attention.wv", "attention.wo", "mlp.up", "norm1")} == {1}


@pytest.mark.parametrize(
    "build", [tiny_gpt2, tiny_llama, lambda: nn.TransformerEncoderLayer(12, 3), lambda: nn.ModuleList([Fused()])]
)
def test_the_tensor_scheme_has_one_block_per_tensor(build):
    model = build()
    assert partition(model, scheme="tensor").scalars == len(list(model.parameters()))


def test_the_tensor_scheme_needs_no_known_structure():
    model = named("OddAttention", mystery=nn.Linear(4, 12), experts=nn.Parameter(torch.randn(2, 3, 4)))
    assert set(counts(model, scheme="tensor").values()) == {1}
    assert counts(model, neurons=False) == {"experts": 1, "mystery.weight": 1, "mystery.bias": 12}


def test_switches_change_only_what_they_name():
    model = tiny_llama()
    base = counts(model)

    def changed(**switch):
        return {name: count for name, count in counts(model, **switch).items() if count != base[name]}

    assert changed(value="tensor") == {f"blocks.{i}.attention.wv.weight": 1 for i in range(2)}
    assert changed(embedding="tensor") == {"tokens.weight": 1} and changed(embedding="coordinate") == {
        "tokens.weight": 320
    }
    assert changed(output="tensor") == {"head.weight": 1} and changed(output="coordinate") == {"head.weight": 320}
    gpt = tiny_gpt2(bias=True)
    biases = {name: count for name, count in counts(gpt, biases="tensor").items() if name.endswith("bias")}
    assert set(biases.values()) == {1}


def test_value_as_one_block_inside_a_fused_projection():
    blocks = partition(nn.TransformerEncoderLayer(12, 3), value="tensor")["self_attn.in_proj_weight"]
    assert blocks.count == 3 + 3 + 1
    with pytest.raises(Misfit, match="in_proj_weight: value='coordinate'"):
        partition(nn.TransformerEncoderLayer(12, 3), value="coordinate")


@pytest.mark.parametrize(
    "wrong", [dict(scheme="v2"), dict(value="head"), dict(biases="row"), dict(embedding="no"), dict(output=1)]
)
def test_wrong_switches_name_the_choices(wrong):
    with pytest.raises(ValueError, match="choose from"):
        partition(tiny_gpt2(), **wrong)


def test_overrides_place_by_name_pattern_number_and_blocks():
    model = tiny_gpt2()
    made = ParamBlocks("mine", (16, 16), "head", 2, 0, ((0, 16, 8),))
    found = partition(model, overrides={
        "blocks.*.wo.weight": "tensor", "blocks.0.attention.wo.weight": "column", "positions.weight": "coordinate",
        "tokens.weight": 5, "blocks.1.mlp.down.weight": "row", "blocks.1.attention.wv.weight": made, "norm.weight": 16,
    })  # fmt: skip
    assert found["blocks.1.attention.wo.weight"].count == 1
    assert found["blocks.0.attention.wo.weight"].axis == 1 and found["blocks.0.attention.wo.weight"].count == 16
    assert (found["positions.weight"].count, found["tokens.weight"].count, found["norm.weight"].count) == (128, 5, 16)
    assert found["blocks.1.attention.wv.weight"].segments == ((0, 16, 8),)
    assert found["blocks.1.attention.wv.weight"].name == "blocks.1.attention.wv.weight"
    again = partition(model).override({"tokens.weight": 5})
    assert again["tokens.weight"].count == 5 and again["positions.weight"].count == 8


def test_a_name_beats_a_pattern_whatever_the_order():
    model = tiny_gpt2()
    for order in (1, -1):
        pairs = [("*.wo.weight", "tensor"), ("blocks.0.attention.wo.weight", 2)][::order]
        assert counts(model, overrides=dict(pairs))["blocks.0.attention.wo.weight"] == 2


@pytest.mark.parametrize(
    "overrides",
    [{"no.such.*": "row"}, {"tokens.weight": 3}, {"tokens.weight": 0}, {"tokens.weight": True}, {"tokens.weight": "neuron"},
     {"norm.weight": "column"}, {"tokens.weight": ParamBlocks("x", (2, 2), "tensor", 1)}],
    ids=str,
)  # fmt: skip
def test_wrong_overrides_name_the_parameter(overrides):
    with pytest.raises(Misfit, match=re.escape(next(iter(overrides)))) as error:
        partition(tiny_gpt2(), overrides=overrides)
    assert "\n" not in str(error.value)


# -- what must be refused ------------------------------------------------------------------------------------------------


def check_suggestion(model: nn.Module, parameter: str) -> None:
    """The error names the parameter first, stands on one line, and its overrides work as they are written."""
    with pytest.raises(Misfit) as error:
        partition(model)
    message = str(error.value)
    assert message.startswith(parameter + ":") and "\n" not in message, message
    suggested = ast.literal_eval(re.search(r"overrides=(\{.*?\})", message).group(1))
    found = partition(model, overrides=suggested)
    assert {blocks.name for blocks in found} == {name for name, p in model.named_parameters() if p.requires_grad}
    opt = AdamMini(model, overrides=suggested)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()


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
    "projections that are no layers": (
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


# -- the printed table ---------------------------------------------------------------------------------------------------


def test_the_printed_table_has_one_line_per_kind_and_the_total():
    text = str(partition(tiny_llama()))
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    assert lines[0] == ["parameter", "shape", "blocks", "scalars"]
    assert lines[1] == ["tokens.weight", "20 x 16", "20 token", "20"]
    assert ["blocks.*.attention.wq.weight x 2", "32 x 16", "4 head", "8"] in lines
    assert ["blocks.*.norm1.weight x 2", "16", "1 tensor", "2"] in lines
    parameters = sum(p.numel() for p in tiny_llama().parameters())
    assert lines[-1][0] == "total" and lines[-1][1] == f"{parameters:,} parameters"
    assert lines[-1][3].startswith(f"{partition(tiny_llama()).scalars:,} (")
    assert len(lines) == 14 and len({len(line) for line in text.splitlines()}) == 1


def test_sums_of_blocks_equal_the_size_of_every_parameter():
    for model in (tiny_gpt2(bias=True), tiny_llama(), nn.Transformer(12, 3, 1, 1, 20, batch_first=True)):
        for blocks in partition(model):
            assert blocks.shape == tuple(model.get_parameter(blocks.name).shape)
            sizes = [size for start, stop, size in blocks.segments for _ in range(start, stop, size)]
            slice_numel = blocks.numel // blocks.shape[blocks.axis]
            covered = (
                sum(sizes) * slice_numel if sizes else blocks.count
            )  # one per coordinate when there are no segments
            assert covered == blocks.numel and blocks.count == (len(sizes) or blocks.numel), blocks.name
