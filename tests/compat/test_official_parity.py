"""Adam-mini and its compat class against the official package adam-mini 1.1.1: equal where it is right, and one test for
every place where it is not, which asserts its failure and our right answer."""

import copy

import pytest
import torch
import zoo
from adam_mini import Adam_mini as Official
from torch import nn
from zoo import double_loss, language_loss

from lowmem import partition
from lowmem.compat import Adam_mini
from lowmem.models import gpt2, llama
from lowmem.optim import AdamMini

STEPS = 50
SETTINGS = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
OFFICIAL_NAMES = (("tokens.", "wte."), ("positions.", "wpe."), ("head.", "lm_head."))


def named(model):
    """Parameters under names that the official substrings recognise."""
    for name, p in model.named_parameters():
        for ours, theirs in OFFICIAL_NAMES:
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        yield name, p


def build(make, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=11, block_size=8)
    extra = dict(n_hidden=24, n_kv_head=2) if make is llama else dict(bias=True)
    return make.build(**(sizes | extra | settings)).to(dtype)


def official(model, **settings):
    return Official(named(model), **{**SETTINGS, **settings}, dim=16, n_heads=4, verbose=False)


def race(optimizer, model, reference, other, steps=STEPS, loss=double_loss, tolerance=1e-9):
    """Two free runs on the same batches end with the same weights."""
    start = zoo.snapshot(model)
    for step in range(steps):
        zoo.apply(optimizer, loss(model, step))
        zoo.apply(reference, loss(other, step))
    assert not zoo.same(start, zoo.snapshot(model))
    for (name, p), q in zip(model.named_parameters(), other.named_parameters()):
        torch.testing.assert_close(p, q[1], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# -- Adam-mini: equal -----------------------------------------------------------------------------------------------------


def matching(model):
    """AdamMini with the official decay and, for GPT-2, the official single block for the position table."""
    one_table = {"positions.weight": "tensor"} if isinstance(model, gpt2.GPT2) else {}
    undecayed = lambda name, p: "norm" in name or "bias" in name  # noqa: E731
    return AdamMini(model, **SETTINGS, no_decay=undecayed, overrides=one_table)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_adam_mini_from_modules_equals_the_official_one(make):
    model, other = build(make), build(make)
    race(matching(model), model, official(other), other)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_adam_mini_equals_the_official_one_in_fp32(make):
    """On the same gradients, since free fp32 runs of any two codes drift apart."""
    model, other = build(make, torch.float32), build(make, torch.float32)
    ours, theirs = matching(model), official(other)
    for step in range(STEPS):
        zoo.apply(theirs, language_loss(other, step))
        for p, q in zip(model.parameters(), other.parameters()):
            p.grad = q.grad.clone()
        ours.step()
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_compat_equals_the_official_one(make):
    model, other = build(make), build(make)
    race(Adam_mini(named(model), **SETTINGS, dim=16, n_heads=4), model, official(other), other)


def test_compat_follows_names_that_the_user_edits(capsys):
    model, other = build(llama), build(llama)
    ours = Adam_mini(named(model), **SETTINGS, dim=16, n_heads=4, n_kv_heads=2)
    theirs = official(other)
    for optimizer in (ours, theirs):
        optimizer.wv_names = set()  # what the official Llama script does: the value matrix as one block
        optimizer.embd_names.add("norm")
        optimizer.embd_names.remove("wte")
        optimizer.embd_names.remove("embed")
        optimizer.embd_names.remove("embd")
        optimizer.embd_names.remove("norm")
    race(ours, model, theirs, other)
    assert ours.blocks(model.blocks[0].attention.wv.weight).count == 1
    assert ours.blocks(model.tokens.weight).count == 1
    assert "second moments" in capsys.readouterr().out


def test_compat_has_the_official_partition_decay_and_attributes():
    model, other = build(gpt2), build(gpt2)
    ours, theirs = Adam_mini(named(model), **SETTINGS, dim=16, n_heads=4, verbose=False), official(other)
    for group, reference in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert group["name"] == reference["name"] and group["weight_decay"] == reference["weight_decay"]
    for key in ("dim", "n_heads", "n_kv_heads", "head_numel", "embd_names", "output_names", "wqk_names", "wv_names"):
        assert getattr(ours, key) == getattr(theirs, key)
    for key in ("attn_proj_names", "mlp_names", "adam_block_names"):
        assert getattr(ours, key) == getattr(theirs, key)
    zoo.apply(ours, double_loss(model, 0))
    zoo.apply(theirs, double_loss(other, 0))
    for p, q in zip(model.parameters(), other.parameters()):
        second = theirs.state[q].get("vmean", theirs.state[q].get("v"))
        assert ours.blocks(p).count == second.numel()


def test_compat_trains_a_thawed_weight_which_the_official_one_leaves_out():
    models = model, other = build(gpt2), build(gpt2)
    for m in models:
        m.tokens.weight.requires_grad_(False)
    ours = Adam_mini(named(model), **SETTINGS, dim=16, n_heads=4, verbose=False)
    theirs = official(other)
    for step, frozen in ((0, True), (1, False)):
        for m, o in zip(models, (ours, theirs)):
            m.tokens.weight.requires_grad_(not frozen)
            before = m.tokens.weight.detach().clone()
            zoo.apply(o, double_loss(m, step))
            assert torch.equal(m.tokens.weight, before) == (frozen or m is other)


def test_compat_survives_pickling_and_a_state_round_trip():
    model = build(llama)
    ours = Adam_mini(named(model), **SETTINGS, dim=16, n_heads=4, verbose=False)
    for step in range(3):
        zoo.apply(ours, double_loss(model, step))
    twin, copied = copy.deepcopy((model, ours))
    again = build(llama)
    again.load_state_dict(model.state_dict())
    loaded = Adam_mini(named(again), **SETTINGS, dim=16, n_heads=4, verbose=False)
    loaded.load_state_dict(ours.state_dict())
    for m, o in ((model, ours), (twin, copied), (again, loaded)):
        zoo.apply(o, double_loss(m, 3))
    assert zoo.same(zoo.snapshot(model), zoo.snapshot(twin)) and zoo.same(zoo.snapshot(model), zoo.snapshot(again))


@pytest.mark.parametrize(
    "wrong", [dict(n_heads=4, n_kv_heads=3), dict(dim=0), dict(dim=2.5), dict(lr=-1.0), dict(betas=(1.0, 0.9))]
)
def test_compat_refuses_what_the_official_one_refuses(wrong):
    with pytest.raises(ValueError, match="|".join(("n_kv_heads", "dim", "lr", "betas"))):
        Adam_mini(build(llama).named_parameters(), **wrong)


# -- Adam-mini: where the official code is wrong --------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention with projections of the given rows, under the given names, in front of nothing: only shapes matter."""

    def __init__(self, heads, head_dim, dim, fused=False):
        super().__init__()
        self.n_head, self.head_dim = heads, head_dim
        if fused:
            self.c_attn = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        else:
            self.wq, self.wk, self.wv = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))

    def forward(self, x):
        return sum(layer(x).square().sum() for layer in self.children())


def one_step(optimizer, model, dim):
    torch.manual_seed(1)
    model(torch.randn(3, dim)).backward()
    optimizer.step()
    return optimizer


def test_fused_qkv_is_one_block_there_and_its_parts_here():
    model = Layer(2, 3, 6, fused=True)
    theirs = one_step(Official(model.named_parameters(), dim=6, n_heads=2, verbose=False), model, 6)
    assert theirs.state[model.c_attn.weight]["vmean"].numel() == 1
    assert [b.count for b in partition(model)] == [2 + 2 + 6]  # query heads, key heads, value neurons


def test_a_head_size_other_than_dim_over_heads_cuts_through_heads_there_and_not_here():
    model = Layer(4, 32, 64)  # heads of 32 rows at width 64: dim / heads would be 16
    theirs = one_step(Official(model.named_parameters(), dim=64, n_heads=4, verbose=False), model, 64)
    assert theirs.state[model.wq.weight]["vmean"].numel() == 8
    assert partition(model)["wq.weight"].count == 4


def test_a_head_size_that_does_not_divide_crashes_there_and_works_here():
    model = Layer(2, 5, 12)
    with pytest.raises(RuntimeError, match="invalid for input"):
        one_step(Official(model.named_parameters(), dim=12, n_heads=2, verbose=False), model, 12)
    before = zoo.snapshot(model)
    one_step(AdamMini(model), model, 12)
    assert partition(model)["wq.weight"].count == 2 and not zoo.same(before, zoo.snapshot(model))


def test_compat_names_the_parameter_where_the_official_one_crashes_and_updates_nothing():
    model = Layer(2, 5, 12)
    before = zoo.snapshot(model)
    with pytest.raises(ValueError, match=r"wq\.weight.*check dim and n_heads"):
        one_step(Adam_mini(model.named_parameters(), dim=12, n_heads=2, verbose=False), model, 12)
    assert zoo.same(before, zoo.snapshot(model))


@pytest.mark.parametrize(
    "name, shape",
    [("mlp.norm.weight", (4,)), ("embeddings.LayerNorm.weight", (4,)), ("patch_embed.weight", (4, 3, 2, 2))],
    ids=["norm in an mlp", "norm of BERT embeddings", "patch embedding of a ViT"],
)
def test_a_tensor_that_is_no_matrix_under_a_row_name_crashes_there_and_works_in_compat(name, shape):
    p, q = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    p.grad, q.grad = torch.ones(shape), torch.ones(shape)
    with pytest.raises((IndexError, RuntimeError)):
        Official([(name, p)], verbose=False).step()
    ours = Adam_mini([(name, q)], lr=0.1, verbose=False)
    ours.step()
    torch.testing.assert_close(q.detach(), torch.full(shape, 0.9))
    assert ours.blocks(q).count == (1 if len(shape) == 1 else 4)


def transformers_model(kind):
    import transformers

    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(**small, vocab_size=13, max_position_embeddings=8)
        return transformers.BertModel(config, add_pooling_layer=False), {"input_ids": torch.tensor([[1, 2, 3]])}
    config = transformers.ViTConfig(**small, image_size=4, patch_size=2)
    return transformers.ViTModel(config, add_pooling_layer=False), {"pixel_values": torch.ones(1, 3, 4, 4)}


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_bert_and_vit_crash_there_and_train_here(kind):
    model, inputs = transformers_model(kind)
    model(**inputs).last_hidden_state.square().sum().backward()
    with pytest.raises((IndexError, RuntimeError)):
        Official(model.named_parameters(), dim=8, n_heads=2, verbose=False).step()
    model, inputs = transformers_model(kind)
    before = zoo.snapshot(model)
    optimizer = AdamMini(model, lr=1e-2)
    model(**inputs).last_hidden_state[..., 0].sum().backward()
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any("query" in n or "q_proj" in n for n in moved) and all(p.isfinite().all() for p in model.parameters())


class Adapted(nn.Module):
    """A query projection with a LoRA adapter, laid out as peft lays it out."""

    def __init__(self, dim, rank):
        super().__init__()
        self.base_layer = nn.Linear(dim, dim, bias=False).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class AdaptedLayer(nn.Module):
    def __init__(self, dim, heads, rank):
        super().__init__()
        self.n_head = heads
        self.q_proj = Adapted(dim, rank)
        self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False).requires_grad_(False) for _ in range(2))

    def forward(self, x):
        return self.q_proj(x).square().sum()


def test_lora_of_rank_8_crashes_there_and_works_here():
    model = AdaptedLayer(64, 4, 8)
    with pytest.raises(RuntimeError, match="invalid for input"):
        one_step(Official(model.named_parameters(), dim=64, n_heads=4, verbose=False), model, 64)
    blocks = partition(model)
    assert (
        len(blocks) == 2 and blocks["q_proj.lora_B.weight"].count == 4
    )  # the up-projection's rows are the heads' rows
    before = zoo.snapshot(model)
    one_step(AdamMini(model), model, 64)
    assert not zoo.same(before, zoo.snapshot(model))


def test_transposed_layers_are_cut_by_input_neuron_there_and_by_output_neuron_here():
    from transformers.pytorch_utils import Conv1D

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc = Conv1D(5, 3)  # 3 inputs, 5 outputs, stored (3, 5)

    model = nn.ModuleDict({"mlp": Mlp(), "attention": Layer(2, 3, 3)})
    p = model["mlp"].c_fc.weight
    p.grad = torch.randn(3, 5)
    theirs = Official([("mlp.c_fc.weight", p)], verbose=False)
    theirs.step()
    assert theirs.state[p]["vmean"].shape == (3, 1)
    assert partition(model)["mlp.c_fc.weight"].count == 5


def test_block_moments_are_16_bit_there_and_fp32_here():
    model = build(llama, torch.bfloat16)
    theirs, ours = official(copy.deepcopy(model)), AdamMini(model)
    for optimizer in (theirs, ours):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    assert {s["vmean"].dtype for s in theirs.state.values()} == {torch.bfloat16}
    assert {s["exp_avg_sq"].dtype for s in ours.state.values()} == {torch.float32}
