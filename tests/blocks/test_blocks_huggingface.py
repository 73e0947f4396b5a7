"""Blocks of Hugging Face models, checked by what they do: a block of a query or key changes whole heads and nothing
else, a block of any other matrix changes one output neuron. No formula of the partition is repeated here.
"""

import ast
import logging
import re

import pytest
import torch
import transformers
from huggingface_blocks import (
    COMMON,
    GQA,
    HEADS,
    HIDDEN,
    LENGTH,
    TOKENS,
    WIDE,
    WIDTH,
    columns_changed,
    labels,
    output_of,
    reader,
)
from torch import nn

from lowmem.blocks import Misfit, partition
from lowmem.blocks.attention import find_attention

logging.getLogger("transformers").setLevel(logging.ERROR)

GPT = dict(vocab_size=TOKENS, n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=16, bos_token_id=1, eos_token_id=2)
ROTARY = {**GPT, "rotary_dim": 4}
IMAGE = {**COMMON, "image_size": 8, "patch_size": 4, "num_labels": 3}
SWIN = dict(
    embed_dim=16, depths=[1, 1], num_heads=[HEADS, HEADS], window_size=2, image_size=16, patch_size=4, num_labels=3
)
BART = dict(
    vocab_size=TOKENS, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=HEADS,
    decoder_attention_heads=2, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
# name: (class of the model, class of the config, settings)
FAMILIES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt2 with cross attention": ("GPT2LMHeadModel", "GPT2Config", {**GPT, "add_cross_attention": True}),
    "imagegpt": ("ImageGPTForCausalImageModeling", "ImageGPTConfig", GPT),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", WIDE),
    "gpt neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", COMMON),
    "gpt neox japanese": ("GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseConfig", COMMON),
    "bert": ("BertForMaskedLM", "BertConfig", COMMON),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", COMMON),
    "distilbert": (
        "DistilBertForMaskedLM", "DistilBertConfig",
        dict(vocab_size=TOKENS, dim=WIDTH, n_layers=1, n_heads=HEADS, hidden_dim=HIDDEN, max_position_embeddings=16),
    ),
    "deberta v2": (
        "DebertaV2ForMaskedLM", "DebertaV2Config",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": False},
    ),
    "deberta": (
        "DebertaForMaskedLM", "DebertaConfig", {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "bark": (
        "BarkSemanticModel", "BarkSemanticConfig",
        dict(input_vocab_size=TOKENS, output_vocab_size=TOKENS, hidden_size=WIDTH, num_layers=1, num_heads=HEADS,
             block_size=16),
    ),
    "moshi, with layers inside modules": ("MoshiForCausalLM", "MoshiConfig", {**GQA, "ffn_dim": HIDDEN, "sliding_window": 16}),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", COMMON),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN),
    "swin v2": ("Swinv2ForImageClassification", "Swinv2Config", SWIN),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**WIDE, "num_key_value_heads": 1}),
    "gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", WIDE),
    "gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", WIDE),
    "phi": ("PhiForCausalLM", "PhiConfig", COMMON),
    "phi 3": ("Phi3ForCausalLM", "Phi3Config", GQA),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        dict(vocab_size=TOKENS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, ffn_dim=HIDDEN,
             max_position_embeddings=16, word_embed_proj_dim=8),
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        dict(vocab_size=TOKENS, d_model=WIDTH, d_kv=8, d_ff=HIDDEN, num_layers=1, num_heads=HEADS),
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", dict(vocab_size=TOKENS, hidden_size=WIDTH, n_layer=1, n_head=HEADS)),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**COMMON, "multi_query": False}),
    "falcon with one key head": ("FalconForCausalLM", "FalconConfig", {**COMMON, "multi_query": True}),
    "falcon with grouped keys": (
        "FalconForCausalLM", "FalconConfig", {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt-j": ("GPTJForCausalLM", "GPTJConfig", ROTARY),
    "gpt neo": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        dict(vocab_size=TOKENS, hidden_size=WIDTH, num_layers=1, num_heads=HEADS, max_position_embeddings=16,
             attention_types=[[["global"], 1]]),
    ),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", ROTARY),
    "bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**GPT, "multi_query": False}),
    "bigcode with one key head": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**GPT, "multi_query": True}),
    "mpt": ("MptForCausalLM", "MptConfig", dict(vocab_size=TOKENS, d_model=WIDTH, n_heads=HEADS, n_layers=1, max_seq_len=16)),
    "persimmon": ("PersimmonForCausalLM", "PersimmonConfig", COMMON),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GQA, "num_local_experts": 3}),
    "qwen3 moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {**WIDE, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**BART, "max_position_embeddings": 16}),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**BART, "num_mel_bins": 4, "max_source_positions": LENGTH, "max_target_positions": 16},
    ),
    "wav2vec2, with weight norm": (
        "Wav2Vec2ForCTC", "Wav2Vec2Config",
        {**COMMON, "conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2},
    ),
    "longformer": ("LongformerForMaskedLM", "LongformerConfig", {**COMMON, "attention_window": 4}),
    "gpt oss": ("GptOssForCausalLM", "GptOssConfig", {**WIDE, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "llama 4": (
        "Llama4ForCausalLM", "Llama4TextConfig",
        {**WIDE, "num_local_experts": 3, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 24},
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, dict]:
    """The model in evaluation mode with weights large enough to see, and inputs for one forward pass."""
    model_class, config_class, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0 if p.ndim > 1 else 1.0, 0.5)
    tokens = torch.randint(3, TOKENS, (1, LENGTH))
    if "ImageClassification" in model_class:
        size = settings["image_size"]
        return model, {"pixel_values": torch.randn(1, 3, size, size)}
    if name == "whisper":
        return model, {"input_features": torch.randn(1, 4, 2 * LENGTH), "decoder_input_ids": tokens}
    if name.startswith("wav2vec2"):
        return model, {"input_values": torch.randn(1, 64)}
    if name in ("t5", "bart"):
        return model, {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    if name == "gpt2 with cross attention":
        return model, {"input_ids": tokens, "encoder_hidden_states": torch.randn(1, LENGTH, WIDTH)}
    return model, {"input_ids": tokens}


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_query_and_key_are_heads_and_those_of_value_are_neurons(name):
    model, inputs = build(name)
    blocks = partition(model)
    blocks_of = {p: blocks[n] for n, p in blocks.named_parameters()}
    modules = find_attention(model)
    assert modules
    for module in modules:
        path = next(name for name, m in model.named_modules() if m is module)
        check_attention(module, reader(model, inputs, output_of(model, module)), module_heads(name, path), blocks_of)


def check_attention(module: nn.Module, read, query_heads: int, blocks_of: dict) -> None:
    """Move every block of the module's matrices, and see which columns of the heads side by side follow."""
    before = read()
    columns = before.shape[1]
    heads, values = [], []
    for p in module.parameters():
        blocks = blocks_of[p]
        if (
            p.numel() == max(p.shape)
            or "position_bias" in blocks.name
            or blocks.kind not in ("head", "mixed", "neuron", "tensor")
        ):
            continue
        which = labels(blocks)
        for block in range(blocks.count):
            chosen = which == block
            changed = columns_changed(read, before, p, chosen)
            if not changed:  # the output projection itself, or a projection this input does not use
                continue
            rows = chosen.any(1) if blocks.axis == 0 else chosen.any(0)
            if int(rows.sum()) == 1:
                values.append(changed)
                continue
            heads.append(changed)
            one_row = torch.zeros_like(chosen)
            one_row[(slice(None),) * blocks.axis + (int(rows.nonzero()[0]),)] = True
            assert columns_changed(read, before, p, one_row) == changed, "one row of a query or key moves whole heads"
    size = columns // query_heads
    assert min(map(len, heads)) == size
    assert all(len(changed) % size == 0 for changed in heads)
    assert all(a <= b or b <= a or not a & b for a in heads for b in heads), "heads are shared out, not cut"
    times = {sum(column in changed for changed in heads) for column in range(columns)}
    assert len(times) == 1 and times.pop() >= 2, "each head has its query block and its key block"
    covered = [sum(column in changed for changed in values) for column in range(columns)]
    assert min(covered) == max(covered) >= 1, "values are cut by neuron"
    assert len(set(map(len, values))) == 1 and size * len(values[0]) <= columns


def module_heads(name: str, path: str) -> int:
    """Query heads of the attention module that this test's settings ask for."""
    return 2 if name in ("bart", "whisper") and "decoder" in path else HEADS


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_one_layout_that_covers_it(name):
    model, _ = build(name)
    blocks = partition(model)
    assert [b.name for b in blocks] == [n for n, p in model.named_parameters() if p.requires_grad]
    for b in blocks:
        assert b.shape == tuple(model.get_parameter(b.name).shape)
        assert labels(b).unique().tolist() == list(range(b.count)), b.name
    assert blocks.scalars == sum(b.count for b in blocks)


def test_the_probe_notices_a_wrong_row_order(monkeypatch):
    monkeypatch.setattr(
        "lowmem.blocks.attention.GROUPED", ()
    )  # BigCode as if it were GPT-2: queries, then keys, then values
    with pytest.raises(AssertionError):
        test_blocks_of_query_and_key_are_heads_and_those_of_value_are_neurons("bigcode")


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "opt", "bert", "whisper", "gpt-j"])
def test_blocks_of_other_layers_are_output_neurons_and_those_of_tables_are_tokens(name):
    model, _ = build(name)
    model.requires_grad_(True)
    blocks = partition(model)
    names = {p: n for n, p in blocks.named_parameters()}
    in_attention = {p for m in find_attention(model) for p in m.parameters()}
    checked = 0
    for module in model.modules():
        p = getattr(module, "weight", None)
        if not isinstance(p, nn.Parameter) or p.ndim != 2 or p in in_attention:
            continue
        which = labels(blocks[names[p]])
        table = isinstance(module, nn.Embedding)

        def read(module=module, table=table, width=p.shape[0]) -> torch.Tensor:
            """Columns: the layer's outputs, or for a table the rows that tokens read."""
            torch.manual_seed(1)
            if table:
                return nn.functional.embedding(torch.arange(module.num_embeddings), module.weight).detach().T.clone()
            return module(torch.randn(3, getattr(module, "in_features", width))).detach()

        before = read()
        moved = [columns_changed(read, before, p, which == block) for block in range(int(which.max()) + 1)]
        assert sorted(moved, key=min) == [frozenset({i}) for i in range(before.shape[1])], names[p]
        checked += 1
    assert checked >= 3


COUNTS = {  # blocks of each kind of parameter, counted by hand from the papers' rule; 1 for every other norm weight
    "gpt2": {"wte.weight": 20, "wpe.weight": 16, "attn.c_attn.weight": 4 + 4 + 16, "attn.c_attn.bias": 48,
             "attn.c_proj.weight": 16, "mlp.c_fc.weight": 64, "mlp.c_fc.bias": 64, "mlp.c_proj.weight": 16},
    "llama": {"embed_tokens.weight": 20, "lm_head.weight": 20, "q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 8,
              "o_proj.weight": 16, "gate_proj.weight": 24, "up_proj.weight": 24, "down_proj.weight": 16},
    "mistral": {"embed_tokens.weight": 20, "lm_head.weight": 20, "q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 8,
                "o_proj.weight": 16, "gate_proj.weight": 24, "up_proj.weight": 24, "down_proj.weight": 16},
    "qwen2": {"embed_tokens.weight": 20, "lm_head.weight": 20, "q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 8,
              "q_proj.bias": 16, "k_proj.bias": 8, "v_proj.bias": 8, "o_proj.weight": 16, "gate_proj.weight": 24,
              "up_proj.weight": 24, "down_proj.weight": 16},
    "qwen3": {"embed_tokens.weight": 20, "lm_head.weight": 20, "q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 16,
              "o_proj.weight": 16, "gate_proj.weight": 24, "up_proj.weight": 24, "down_proj.weight": 16},
    "gpt neox": {"embed_in.weight": 20, "embed_out.weight": 20, "lm_head.weight": 20,
                 "query_key_value.weight": 4 + 4 + 16, "query_key_value.bias": 48, "attention.dense.weight": 16,
                 "dense_h_to_4h.weight": 24, "dense_h_to_4h.bias": 24, "dense_4h_to_h.weight": 16},
    "bert": {"word_embeddings.weight": 20, "position_embeddings.weight": 16, "token_type_embeddings.weight": 2,
             "query.weight": 4, "key.weight": 4, "value.weight": 16, "output.dense.weight": 16, "transform.dense.weight": 16,
             "intermediate.dense.weight": 24, "intermediate.dense.bias": 24, "predictions.bias": 20},
    "vit": {"position_embeddings": 5, "cls_token": 1, "projection.weight": 1, "q_proj.weight": 4, "k_proj.weight": 4,
            "v_proj.weight": 16, "o_proj.weight": 16, "fc1.weight": 24, "fc1.bias": 24, "fc2.weight": 16,
            "classifier.weight": 3, "classifier.bias": 3},
    "gemma": {"embed_tokens.weight": 20, "q_proj.weight": 4, "k_proj.weight": 1, "v_proj.weight": 8, "o_proj.weight": 16,
              "gate_proj.weight": 24, "up_proj.weight": 24, "down_proj.weight": 16},
    "phi": {"embed_tokens.weight": 20, "lm_head.weight": 20, "lm_head.bias": 20, "q_proj.weight": 4, "k_proj.weight": 4,
            "v_proj.weight": 16, "dense.weight": 16, "fc1.weight": 24, "fc1.bias": 24, "fc2.weight": 16},
    "opt": {"embed_tokens.weight": 20, "embed_positions.weight": 18, "project_in.weight": 16, "project_out.weight": 8,
            "q_proj.weight": 4, "k_proj.weight": 4, "v_proj.weight": 16, "out_proj.weight": 16, "fc1.weight": 24,
            "fc1.bias": 24, "fc2.weight": 16},
    "t5": {"shared.weight": 20, ".q.weight": 4, ".k.weight": 4, ".v.weight": 32, ".o.weight": 16, "wi.weight": 24,
           "wo.weight": 16, "relative_attention_bias.weight": 32},
    "mixtral": {"embed_tokens.weight": 20, "lm_head.weight": 20, "q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 8,
                "o_proj.weight": 16, "gate.weight": 3, "gate_up_proj": 3 * 48, "down_proj": 3 * 16},
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_known_families_are_those_counted_by_hand(name):
    model, _ = build(name)
    for blocks in partition(model):
        suffix = [n for n in COUNTS[name] if blocks.name.endswith(n)]
        expected = COUNTS[name][max(suffix, key=len)] if suffix else 16 if blocks.name.endswith("bias") else 1
        assert blocks.count == expected, blocks.name


UNKNOWN = {
    "xlnet": (
        "XLNetLMHeadModel", "XLNetConfig", dict(vocab_size=20, d_model=16, n_layer=1, n_head=4, d_inner=24), "rel_attn.q",
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification", "SwiftFormerConfig",
        dict(depths=[1] * 4, embed_dims=[8] * 4, image_size=64, num_labels=3), "attn.to_query.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_families_of_another_layout_are_refused_with_an_override_that_works(name):
    model_class, config_class, settings, named = UNKNOWN[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    with pytest.raises(Misfit) as error:
        partition(model)
    message = str(error.value)
    assert named in message.split(":")[0] and "\n" not in message
    suggested = ast.literal_eval(re.search(r"overrides=(\{.*?\})", message).group(1))
    blocks = partition(model, overrides=suggested)
    assert len(blocks) == len(list(model.parameters()))
