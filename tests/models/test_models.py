import math
from pathlib import Path

import pytest
import torch

from lowmem import partition
from lowmem.errors import Misuse
from lowmem.models import _attention, gpt2, llama
from lowmem.pipeline import model_settings

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 50, "block_size": 24}
LLAMA = {**GPT2, "n_hidden": 48}


def count(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(build, **settings):
    with torch.device("meta"):
        return build(**settings)


# (module, size, parameters). Llama up to 1b: the paper's flavor table. Released models: their published counts.
COUNTS = [
    (gpt2, "125m", 124_373_760),
    (gpt2, "330m", 354_599_936),
    (gpt2, "770m", 773_582_080),
    (gpt2, "1.5b", 1_556_840_000),
    (llama, "20m", 19_794_176),
    (llama, "39m", 38_738_304),
    (llama, "67m", 66_857_472),
    (llama, "102m", 101_924_480),
    (llama, "162m", 162_423_552),
    (llama, "271m", 271_090_688),
    (llama, "1b", 1_055_991_808),
    (llama, "tinyllama-1.1b", 1_100_048_384),
    (llama, "llama-7b", 6_738_415_616),
    (llama, "llama-13b", 13_015_864_320),
    (llama, "llama-30b", 32_528_943_616),
    (llama, "llama-65b", 65_285_660_672),
    (llama, "llama2-7b", 6_738_415_616),
    (llama, "llama2-13b", 13_015_864_320),
    (llama, "llama3-8b", 8_030_261_248),
    (llama, "smollm2-135m", 134_515_008),
]


@pytest.mark.parametrize("module, size, parameters", COUNTS, ids=[size for _, size, _ in COUNTS])
def test_named_sizes_have_the_published_number_of_parameters(module, size, parameters):
    assert count(on_meta(module.build, size=size)) == parameters


def test_every_named_size_is_counted():
    assert {(m, s) for m, s, _ in COUNTS} == {(m, s) for m in (gpt2, llama) for s in m.SIZES}


def test_openai_gpt2_shape_has_its_published_count():
    assert count(on_meta(gpt2.build, size="125m", vocab_size=50257, bias=True)) == 124_439_808


@pytest.mark.parametrize("build", [lambda: gpt2.build(**GPT2), lambda: llama.build(**LLAMA, n_kv_head=2)])
def test_no_position_sees_later_tokens(build):
    torch.manual_seed(0)
    model = build().eval()
    tokens = torch.randint(0, 50, (3, 24))
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_loss_in_forward_is_the_cross_entropy_of_the_logits_without_ignored_targets():
    model = gpt2.build(**GPT2)
    tokens, targets = torch.randint(0, 50, (2, 2, 24))
    targets[0, :7] = -1
    kept = targets != -1
    expected = torch.nn.functional.cross_entropy(model(tokens)[kept], targets[kept])
    torch.testing.assert_close(model(tokens, targets), expected)


def test_untrained_loss_is_near_that_of_uniform_guessing():
    tokens = torch.randint(0, 50, (8, 24))
    for model in (gpt2.build(**GPT2), llama.build(**LLAMA), llama.build(**LLAMA, tied=True)):
        assert abs(model(tokens, tokens.roll(1)).item() - math.log(50)) < 1.0


def test_residual_projections_start_smaller_with_depth():
    torch.manual_seed(0)
    model = gpt2.build(**{**GPT2, "n_embd": 128, "n_layer": 8})
    assert model.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    model = llama.build(**{**LLAMA, "n_embd": 128, "n_hidden": 256, "n_layer": 8})
    for depth in (0, 7):
        wanted = 0.02 / math.sqrt(2 * (depth + 1))
        assert model.blocks[depth].attention.wo.weight.std().item() == pytest.approx(wanted, rel=0.05)


def test_rotary_scores_depend_on_relative_position_only():
    cos, sin = llama.rotary_table(64, 16, 10000.0)
    q, k = torch.randn(2, 16)

    def score(i, j):
        return llama.rotate(q, cos[i], sin[i]) @ llama.rotate(k, cos[j], sin[j])

    torch.testing.assert_close(score(3, 1), score(60, 58), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(score(3, 1), score(3, 2), rtol=1e-3)


def test_grouped_query_attention_equals_full_attention_with_repeated_heads():
    torch.manual_seed(0)
    grouped, full = llama.build(**LLAMA, n_kv_head=2), llama.build(**LLAMA)
    state = grouped.state_dict()
    for name in state:
        if name.endswith(("wk.weight", "wv.weight")):
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 24))
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_explicit_attention_equals_the_fused_kernel(kv_heads):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 24, 8), torch.randn(2, kv_heads, 24, 8), torch.randn(2, kv_heads, 24, 8)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    explicit, fused = _attention.explicit(q, k, v), _attention.causal_attention(q, k, v)
    torch.testing.assert_close(explicit, fused)
    weights = torch.randn_like(fused)
    for left, right in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (explicit, fused))):
        torch.testing.assert_close(left, right)


def test_bf16_logits_stay_close_to_fp32():
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (2, 24))
    for model in (gpt2.build(**GPT2), llama.build(**LLAMA, n_kv_head=2)):
        with torch.autocast("cpu", torch.bfloat16):
            low = model(tokens, tokens)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, model(tokens, tokens), rtol=2e-2, atol=2e-2)


def test_gpt2_logits_equal_those_of_transformers():
    import transformers

    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2,
            n_head=4,
            n_embd=32,
            vocab_size=50,
            n_positions=24,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()
    ours = gpt2.build(**GPT2, bias=True)
    source, state = theirs.state_dict(), {}
    for theirs_name, name in {"wte": "tokens", "wpe": "positions"}.items():
        state[f"{name}.weight"] = source[f"transformer.{theirs_name}.weight"]
    state["head.weight"] = state["tokens.weight"]
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = source[f"transformer.ln_f.{kind}"]
        for i in range(2):
            h, b = f"transformer.h.{i}", f"blocks.{i}"
            names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_proj": "attention.wo", "mlp.c_fc": "mlp.up"}
            for old, new in {**names, "mlp.c_proj": "mlp.down"}.items():
                value = source[f"{h}.{old}.{kind}"]
                state[f"{b}.{new}.{kind}"] = value.T if value.dim() == 2 else value
            for new, part in zip(("wq", "wk", "wv"), source[f"{h}.attn.c_attn.{kind}"].chunk(3, dim=-1)):
                state[f"{b}.attention.{new}.{kind}"] = part.T if part.dim() == 2 else part
    ours.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_logits_equal_those_of_transformers(tied):
    import transformers

    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
            max_position_embeddings=24,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        )
    ).eval()
    ours = llama.build(**LLAMA, n_kv_head=2, rope_base=100000.0, tied=tied)
    renamed = {
        "model.embed_tokens": "tokens", "model.norm": "norm", "lm_head": "head", "model.layers": "blocks",
        "self_attn": "attention", "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo",
        "input_layernorm": "norm1", "post_attention_layernorm": "norm2", "_proj": "",
    }  # fmt: skip
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_partition_gives_every_projection_its_blocks():
    blocks = {b.name: b for b in partition(llama.build(**LLAMA, n_kv_head=2))}
    counts = {
        "tokens.weight": 50, "head.weight": 50, "blocks.0.attention.wq.weight": 4, "blocks.0.attention.wk.weight": 2,
        "blocks.0.attention.wv.weight": 16, "blocks.0.attention.wo.weight": 32, "blocks.0.mlp.gate.weight": 48,
        "blocks.0.mlp.down.weight": 32, "norm.weight": 1,
    }  # fmt: skip
    assert {name: blocks[name].count for name in counts} == counts
    tied = {b.name: b.count for b in partition(gpt2.build(**GPT2))}
    assert tied["tokens.weight"] == 50 and tied["positions.weight"] == 24 and "head.weight" not in tied


@pytest.mark.parametrize(
    "build, settings, word",
    [
        (gpt2.build, {"size": "9b"}, "125m"),
        (gpt2.build, {"n_heads": 3}, "n_head"),
        (gpt2.build, {"n_embd": 30, "n_head": 4}, "divisible"),
        (llama.build, {"size": "9b"}, "llama2-7b"),
        (llama.build, {"layers": 3}, "n_layer"),
        (llama.build, {"n_head": 4, "n_kv_head": 3}, "divide"),
    ],
)
def test_wrong_model_settings_are_refused_in_one_line(build, settings, word):
    with pytest.raises(Misuse, match=word) as caught:
        build(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "block_size", "vocab_size"])
def test_sizes_beyond_any_models_are_refused_before_memory_is_taken(key):
    with pytest.raises(Misuse, match=rf"x\.yaml: model\.{key}: 1000000000000 is too large; at most "):
        model_settings.check({"name": "llama", key: 10**12}, Path("x.yaml"))


def test_shuffled_matrices_change_no_output_and_no_step_of_adamw_but_the_blocks():
    from lowmem.optim import AdamMini, AdamW

    shape = {"vocab_size": 16, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "n_hidden": 12}
    text = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(0))

    def trained(make, **settings):
        torch.manual_seed(0)
        model = llama.build(**shape, **settings)
        optimizer = make(model)
        for _ in range(5):
            optimizer.zero_grad()
            model(text[:, :-1], text[:, 1:]).backward()
            optimizer.step()
        return model(text[:, :-1])

    assert torch.equal(trained(lambda m: AdamW(m, lr=1e-2)), trained(lambda m: AdamW(m, lr=1e-2), shuffled="*"))
    halves = {"*.wq*": 2, "*.wk*": 2}
    plain = trained(lambda m: AdamMini(m, lr=1e-2))
    random = trained(lambda m: AdamMini(m, lr=1e-2, overrides=halves), shuffled="*.w[qk]")
    assert not torch.equal(plain, random)
    model = llama.build(**shape, shuffled="*.w[qk]")
    counts = {blocks.name.split(".parametrizations")[0]: blocks.count for blocks in partition(model, overrides=halves)}
    assert counts["blocks.0.attention.wq"] == 2 and counts["blocks.0.attention.wv.weight"] == 8
