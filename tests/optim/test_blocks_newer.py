"""Blocks of latent attention, gated delta networks, gated queries and stacked experts of Hugging Face, by what they do:
how many columns of the layer's result follow when one block changes.
"""

from collections import Counter

import pytest
import torch
import transformers
from test_blocks_huggingface import COMMON, HEADS, LENGTH, TOKENS, WIDE, columns_changed, labels, output_of, reader

from lowmem.attention_roles import find_attention
from lowmem.blocks import Misfit, partition
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
NORMED_MOVES = {
    "q_proj": {(4, 16): HEADS},
    "k_proj": {(4, 16): HEADS},
    "v_proj": {(1, 1): 16},
}  # one norm over all heads
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
