"""Blocks of latent attention, gated delta networks, gated queries, stacked experts and other layouts of Hugging Face, by
what they do: how many columns of the layer's result follow when one block changes.
"""

from collections import Counter

import pytest
import torch
import transformers
from huggingface_blocks import COMMON, HEADS, LENGTH, TOKENS, WIDE, columns_changed, labels, output_of, reader
from transformers.models.ibert.quant_modules import QuantEmbedding

from lowmem.blocks import Misfit, partition
from lowmem.blocks.attention import find_attention
from lowmem.optim import AdamMini

LATENT = dict(kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=2)
SPARSE = dict(n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, n_group=1, topk_group=1)
# two key heads of 4, four value heads of 2
DELTA = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=2,
    layer_types=["linear_attention", "full_attention"], num_hidden_layers=2,
)  # fmt: skip
MIXTURE = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8)
# {projection: {(rows of a block, columns that follow): blocks}}, worked out by hand from the equations of each layer.
LATENT_MOVES = {
    "q_b_proj": {(12, 2): HEADS},  # 8 plain and 4 rotary rows: one head of values follows
    "kv_a_proj_with_mqa": {(1, 2 * HEADS): 6, (4, 2 * HEADS): 1},  # a row of the latent; the rotary key of all heads
    "kv_b_proj": {(8, 2): HEADS, (1, 1): 2 * HEADS},  # plain keys of a head; a value
}
GATED_MOVES = {  # 4 query heads of 8 and 2 key heads: two query heads see one value
    "q_proj": {(8, 8): HEADS, (1, 1): 8 * HEADS},
    "k_proj": {(8, 16): 2},
    "v_proj": {(1, 2): 16},
}
# Values of a head go through a norm together; two value heads share a key head.
DELTA_MOVES = {"in_proj_qkvz": {(4, 4): 2 * 2, (1, 2): 8, (1, 1): 8}, "in_proj_ba": {(1, 2): 8}}
DELTA_APART = {"in_proj_qkv": {(4, 4): 2 * 2, (1, 2): 8}, "in_proj_z": {(1, 1): 8}, "in_proj_b": {(1, 2): 4}}
DELTA_SEPARATE = {"q_proj": {(4, 4): 2}, "k_proj": {(4, 4): 2}, "v_proj": {(1, 2): 8}, "g_proj": {(1, 1): 8}}
# One norm over all heads.
NORMED_MOVES = {"q_proj": {(4, 16): HEADS}, "k_proj": {(4, 16): HEADS}, "v_proj": {(1, 1): 16}}
FAMILIES = {
    "deepseek v2": (
        "DeepseekV2ForCausalLM", "DeepseekV2Config", {**COMMON, **LATENT, **SPARSE, "q_lora_rank": None},
        [{**{"q_proj": LATENT_MOVES["q_b_proj"]}, **{k: v for k, v in LATENT_MOVES.items() if k != "q_b_proj"}}],
    ),
    "deepseek v3": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", {**COMMON, **LATENT, **SPARSE, "q_lora_rank": 8},
        [{"q_a_proj": {(1, 2 * HEADS): 8}, **LATENT_MOVES}],
    ),
    "minicpm3": ("MiniCPM3ForCausalLM", "MiniCPM3Config", {**COMMON, **LATENT, "q_lora_rank": 8}, [LATENT_MOVES]),
    "qwen3 next": (
        "Qwen3NextForCausalLM", "Qwen3NextConfig", {**WIDE, **DELTA, **MIXTURE}, [DELTA_MOVES, GATED_MOVES],
    ),
    "qwen3.5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", {**WIDE, **DELTA}, [DELTA_APART, GATED_MOVES]),
    "olmo hybrid": ("OlmoHybridForCausalLM", "OlmoHybridConfig", {**COMMON, **DELTA}, [DELTA_SEPARATE, NORMED_MOVES]),
}  # fmt: skip


def build(name: str):
    """The model with weights large enough to see, and what its attention modules should show, in order."""
    model_class, config_class, settings, moves = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0 if p.ndim > 1 else 1.0, 0.5)
    return model, moves


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_moves_the_columns_that_the_layers_equations_say(name):
    model, moves = build(name)
    blocks = partition(model)
    inputs = {"input_ids": torch.randint(3, TOKENS, (1, LENGTH))}
    modules = find_attention(model)
    assert len(modules) == len(moves)
    for module, expected in zip(modules, moves):
        path = next(n for n, m in model.named_modules() if m is module)
        read = reader(model, inputs, output_of(model, module))
        before = read()
        for child, wanted in expected.items():
            p = module.get_submodule(child).weight
            which = labels(blocks[f"{path}.{child}.weight"])
            found = Counter()
            for block in range(int(which.max()) + 1):
                chosen = which == block
                changed = columns_changed(read, before, p, chosen)
                rows = chosen.any(1).nonzero().flatten()
                found[len(rows), len(changed)] += 1
                for row in (rows[0], rows[-1]):  # the head is one: each of its rows moves all that it moves
                    one = torch.zeros_like(chosen)
                    one[row] = True
                    assert columns_changed(read, before, p, one) == changed, (child, block, int(row))
            assert found == wanted, child


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_covered_and_can_be_trained(name):
    model, _ = build(name)
    blocks = partition(model)
    for b in blocks:
        assert labels(b).unique().tolist() == list(range(b.count)), b.name
    optimizer = AdamMini(model, lr=1e-2)
    tokens = torch.randint(3, TOKENS, (2, LENGTH))
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def experts(name: str):
    """(experts module whose inner width is the outer one, read(): (experts, width) of its result for a token each)."""
    torch.manual_seed(0)
    models, settings = transformers.models, {**WIDE, "intermediate_size": 16, "num_local_experts": 3}
    routed = (torch.randn(3, 16), torch.arange(3)[:, None], torch.ones(3, 1))
    if name == "llama 4":
        module = models.llama4.modeling_llama4.Llama4TextExperts(transformers.Llama4TextConfig(**settings))
        routed = routed[:1]
    elif name == "gpt oss":
        module = models.gpt_oss.modeling_gpt_oss.GptOssExperts(transformers.GptOssConfig(**settings))
    else:
        sizes = dict(hidden_size=16, expert_ffn_hidden_size=16, n_routed_experts=3, zero_expert_num=0)
        config = transformers.LongcatFlashConfig(**sizes)
        module = models.longcat_flash.modeling_longcat_flash.LongcatFlashExperts(config)
        own = routed[1]  # it wants two experts for a token: the second one's result counts nothing
        routed = (routed[0], torch.cat([own, own.roll(1)], 1), torch.tensor([[1.0, 0.0]] * 3))
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.5)
        module.down_proj.copy_(torch.eye(16).expand(3, 16, 16))
    return module, lambda: module(*routed).detach().reshape(3, 16)


@pytest.mark.parametrize("name", ["llama 4", "gpt oss", "longcat"])
@pytest.mark.parametrize("weight", ["gate_up_proj", "down_proj"])
def test_a_block_of_stacked_experts_is_one_output_neuron_of_one_expert(name, weight):
    module, read = experts(name)
    holder = torch.nn.Module()
    holder.attention, holder.experts = torch.nn.MultiheadAttention(16, 4), module
    blocks = partition(holder)[f"experts.{weight}"]
    p, before, moved = getattr(module, weight), read(), Counter()
    assert blocks.count == p.numel() // 16, "one for each of the outputs, which all see 16 inputs"
    for block in range(blocks.count):
        chosen, saved = labels(blocks) == block, p.detach().clone()
        with torch.no_grad():
            p[chosen] += torch.randn(int(chosen.sum()))
        changed = ((read() - before).abs() > 1e-6).nonzero().tolist()
        with torch.no_grad():
            p.copy_(saved)
        assert len(changed) <= 1, "one column of one expert's result"
        moved.update(map(tuple, changed))
    assert len(moved) >= 3 * 16 - 4, "a clamped gate may hide a few"


def test_experts_of_jetmoe_are_cut_by_output_neuron():
    module = transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts(3, 4, 5)
    holder = torch.nn.Module()
    holder.attention, holder.experts = torch.nn.MultiheadAttention(16, 4), module
    blocks = partition(holder)["experts.weight"]
    torch.nn.init.normal_(module.weight)
    inputs = torch.randn(3, 4)  # a token for each expert

    def read() -> torch.Tensor:
        return module(inputs, [1, 1, 1]).detach().reshape(1, -1)

    before = read()
    moved = [columns_changed(read, before, module.weight, labels(blocks) == block) for block in range(blocks.count)]
    assert moved == [frozenset({i}) for i in range(3 * 5)]


def test_the_indexer_of_sparse_attention_is_cut_by_head_and_strangers_beside_latent_attention_are_refused():
    config = transformers.DeepseekV32Config(
        **COMMON, **LATENT, **SPARSE, q_lora_rank=8, index_n_heads=2, index_head_dim=8, index_topk=4
    )
    model = transformers.DeepseekV32ForCausalLM(config)
    blocks = partition(model)
    found = {name: blocks[f"model.layers.0.self_attn.indexer.{name}.weight"] for name in ("wq_b", "wk", "weights_proj")}
    assert {name: b.count for name, b in found.items()} == {"wq_b": 2, "wk": 1, "weights_proj": 2}
    attention = model.model.layers[0].self_attn
    attention.memory = torch.nn.Bilinear(3, 4, 5)
    with pytest.raises(Misfit, match=r"self_attn\.memory\.weight: Bilinear inside DeepseekV32Attention .*overrides="):
        partition(model)


def test_settings_that_a_config_refuses_to_tell_are_read_from_the_module():
    class PerLayer:
        def __getattr__(self, name):
            raise LookupError(f"{name} differs between layers")

    model, _ = build("minicpm3")
    expected = [b.count for b in partition(model)]
    model.model.layers[0].self_attn.config = PerLayer()
    assert [b.count for b in partition(model)] == expected


def test_another_number_of_rows_than_the_heads_need_is_refused():
    model, _ = build("minicpm3")
    model.model.layers[0].self_attn.v_head_dim = 3
    with pytest.raises(Misfit, match=r"kv_b_proj\.weight: blocks cover 44 of 40"):
        partition(model)


def counts(holder: torch.nn.Module) -> dict[str, int]:
    """{parameter: number of blocks}."""
    return {b.name: b.count for b in partition(holder)}


def holding(**modules: torch.nn.Module) -> torch.nn.Module:
    """A Transformer with these modules: beside what they hold it has only a usual attention."""
    holder = torch.nn.Module()
    holder.usual = torch.nn.MultiheadAttention(16, 4)
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


def test_keys_and_values_in_one_projection_beside_the_queries_are_cut_like_each_alone():
    config = transformers.GraniteSpeechEncoderConfig(
        hidden_dim=16, num_heads=4, dim_head=4, context_size=4, max_pos_emb=8
    )
    module = transformers.models.granite_speech.modeling_granite_speech.GraniteSpeechConformerAttention(config).eval()
    blocks = partition(holding(attention=module))
    inputs, distances = torch.randn(1, 4, 16), torch.zeros(4, 4, dtype=torch.long)

    def read() -> torch.Tensor:
        seen = []
        handle = module.to_out.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()[0]))
        with torch.no_grad():
            module(inputs, attention_dists=distances)
        handle.remove()
        return seen[0].clone()

    before = read()
    for name, wanted in {"to_q": {(4, 4): 4}, "to_kv": {(4, 4): 4, (1, 1): 16}}.items():
        p, found = getattr(module, name).weight, Counter()
        which = labels(blocks[f"attention.{name}.weight"])
        for block in range(int(which.max()) + 1):
            chosen = which == block
            found[int(chosen.any(1).sum()), len(columns_changed(read, before, p, chosen))] += 1
        assert found == wanted, name


def test_deformable_attention_has_values_and_neurons_but_no_keys():
    config = transformers.RTDetrConfig(d_model=16, decoder_attention_heads=4, decoder_n_points=2, num_feature_levels=1)
    module = transformers.models.rt_detr.modeling_rt_detr.RTDetrMultiscaleDeformableAttention(config, 4, 2)
    found = counts(holding(attention=module))
    offsets = 4 * config.num_feature_levels * 2 * 2
    assert found["attention.sampling_offsets.weight"] == offsets == module.sampling_offsets.out_features
    assert found["attention.attention_weights.weight"] == offsets // 2 == module.attention_weights.out_features
    assert (found["attention.value_proj.weight"], found["attention.output_proj.weight"]) == (16, 16)


def test_a_layer_of_latent_attention_without_rotary_rows_has_only_the_latent():
    config = transformers.DeepseekV3Config(**COMMON, **LATENT, **SPARSE, q_lora_rank=8)
    attention = transformers.DeepseekV3ForCausalLM(config).model.layers[0].self_attn
    attention.kv_a_proj_with_mqa = torch.nn.Linear(16, 6, bias=False)
    attention.qk_rope_head_dim, attention.qk_nope_head_dim = 0, 8 + 4
    attention.kv_b_proj = torch.nn.Linear(6, HEADS * (12 + 2), bias=False)
    found = counts(holding(attention=attention))
    assert found["attention.kv_a_proj_with_mqa.weight"] == 6
    assert found["attention.kv_b_proj.weight"] == HEADS + 2 * HEADS


class Bare(torch.nn.Module):
    """A module with one bare parameter of random numbers."""

    def __init__(self, name: str, *shape: int):
        super().__init__()
        self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("pos_embed", (1, 9, 16), 9),
        ("positional_embedding_vlm", (9, 16), 9),
        ("memory_temporal_positional_encoding", (7, 1, 1, 16), 7),
        ("mid_position_embeddings", (3, 1, 5, 16), 15),
        ("detection_tokens", (1, 6, 16), 6),
        ("latents_1d", (6, 16), 6),
        ("emb_rel_k", (1, 9, 4), 9),
    ],
)
def test_a_row_of_a_bare_table_of_positions_or_learned_tokens_is_a_block(name, shape, count):
    blocks = partition(holding(table=Bare(name, *shape)))[f"table.{name}"]
    which = labels(blocks).reshape(count, shape[-1])
    assert (blocks.count, which.unique().tolist()) == (count, list(range(count)))
    assert all(len(row.unique()) == 1 for row in which), "a block is one row over the last axis"


class PatchEmbedding(Bare):
    """No table: its rows are not tokens."""


@pytest.mark.parametrize(
    "kind, name, shape",
    [
        (Bare, "pos_embed", (1, 16, 7, 7)),
        (Bare, "query", (4, 16)),
        (Bare, "token_mixing", (4, 4)),
        (PatchEmbedding, "weight", (12, 16)),
    ],
)
def test_tables_with_channels_first_and_words_that_may_mean_anything_are_refused(kind, name, shape):
    with pytest.raises(Misfit, match=rf"table\.{name}: a bare parameter of shape .*overrides="):
        partition(holding(table=kind(name, *shape)))


def test_tables_of_a_class_of_their_own_are_cut_by_token_and_projectors_that_multiply_from_the_right_by_column():
    quantised = QuantEmbedding(5, 16)
    vision = transformers.Gemma3Config(
        text_config=dict(hidden_size=24), vision_config=dict(hidden_size=16, image_size=8, patch_size=4)
    )
    projector = transformers.models.gemma3.modeling_gemma3.Gemma3MultiModalProjector(vision)
    heads = transformers.models.csm.modeling_csm.CsmCodebooksHead(16, 3, 5)
    blocks = partition(holding(words=quantised, projector=projector, heads=heads))
    assert blocks["words.weight"].count == 5
    weight = blocks["projector.mm_input_projection_weight"]
    assert (weight.shape, weight.count, weight.axis) == ((16, 24), 24, 1)
    stacked = blocks["heads.weight"]
    assert (stacked.shape, stacked.count) == ((2, 16, 5), 2 * 5)
    assert torch.equal(labels(stacked)[1], (5 + torch.arange(5)).expand(16, 5))


def test_experts_that_only_their_sizes_explain_are_cut_by_output_neuron():
    def experts(*shape: int) -> torch.nn.Module:
        module = Bare("gate_up_proj", *shape)
        module.num_experts, module.intermediate_dim, module.hidden_dim = 3, 4, 16
        return module

    assert counts(holding(experts=experts(3, 8, 16)))["experts.gate_up_proj"] == 3 * 8
    assert counts(holding(experts=experts(3, 16, 8)))["experts.gate_up_proj"] == 3 * 8
    with pytest.raises(Misfit, match=r"experts\.gate_up_proj: a bare parameter"):
        partition(holding(experts=experts(3, 9, 16)))
