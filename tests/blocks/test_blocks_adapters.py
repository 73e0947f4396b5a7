"""Adapters: tensors that stand beside a frozen layer, under the attribute names of peft."""

import pytest
import torch
from block_nets import Attention, named
from torch import nn

from lowmem.blocks import Misfit, partition

WIDTH, HEADS, RANK = 24, 4, 3
# attribute: (shape, (blocks on a query layer, on a value layer), axis of a block)
TENSORS = {
    "lora_A": ((RANK, WIDTH), (RANK, RANK), 0),
    "lora_B": ((WIDTH, RANK), (HEADS, WIDTH), 0),
    "lora_E": ((RANK, 1), (1, 1), 0),
    "hada_w1_a": ((WIDTH, RANK), (HEADS, WIDTH), 0),
    "hada_w2_b": ((RANK, WIDTH), (RANK, RANK), 0),
    "lokr_w1": ((4, 6), (4, 4), 0),
    "lokr_w2": ((6, 4), (6, 6), 0),
    "oft_R": ((6, 6), (6, 6), 0),
    "boft_R": ((2, 6, 4, 4), (12, 12), 0),
    "boft_s": ((WIDTH, 1), (1, 1), 0),
    "hra_u": ((WIDTH, RANK), (RANK, RANK), 1),
    "miss_block": ((RANK, WIDTH), (HEADS, WIDTH), 1),
    "randlora_lambda": ((RANK, 8), (RANK, RANK), 0),
    "c3a_kernel": ((6, 6, 4), (36, 36), 0),
    "hira_B": ((WIDTH, RANK), (HEADS, WIDTH), 0),
    "vblora_logits_A": ((RANK, 2, 8), (2 * RANK, 2 * RANK), 0),
    "gralora_B": ((2, RANK, 12), (WIDTH, WIDTH), 1),
    "ia3_l": ((1, WIDTH), (1, 1), 0),
}  # fmt: skip


class RateGrid(nn.Module):
    """A frozen layer with one bare tensor on it."""

    def __init__(self, attribute, shape):
        super().__init__()
        self.base_layer = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        setattr(self, attribute, nn.ParameterDict({"default": nn.Parameter(torch.randn(shape))}))


def attention(make):
    module = Attention(width=WIDTH, heads=HEADS).requires_grad_(False)
    for name in ("q_proj", "v_proj", "out"):
        setattr(module, name, make())
    return nn.ModuleDict({"attn": module, "mlp": make()})


@pytest.mark.parametrize("attribute", TENSORS)
def test_bare_tensors_of_adapters_are_cut_by_what_they_make(attribute):
    shape, (query, value), axis = TENSORS[attribute]
    found = partition(attention(lambda: RateGrid(attribute, shape)))
    blocks = {name: found[f"{name}.{attribute}.default"] for name in ("attn.q_proj", "attn.v_proj", "attn.out", "mlp")}
    assert [b.count for b in blocks.values()] == [query, value, value, value]
    assert query == 1 or {b.axis for b in blocks.values()} == {axis}


def test_rows_of_the_second_matrix_that_feed_a_head_are_one_block():
    """Read off by gradient: the rows of an adapter on queries that reach one head."""
    layer, heads = RateGrid("hada_w1_a", (WIDTH, RANK)), nn.ModuleDict({"attn": Attention(width=WIDTH, heads=HEADS)})
    heads["attn"].q_proj = layer
    p = layer.hada_w1_a["default"]
    made = (p @ torch.randn(RANK, WIDTH)) * torch.randn(WIDTH, WIDTH)  # a Hadamard product keeps rows apart
    queries = (torch.randn(5, WIDTH) @ made.T).view(5, HEADS, -1)
    (segment,) = partition(heads)["attn.q_proj.hada_w1_a.default"].segments
    for head in range(HEADS):
        (g,) = torch.autograd.grad(queries[:, head].square().sum(), p, retain_graph=True)
        rows = g.abs().sum(1).nonzero().flatten().tolist()
        assert rows == list(range(head * segment[2], (head + 1) * segment[2]))


@pytest.mark.parametrize("rank", [RANK, WIDTH], ids=["thin", "as wide as the layer"])
def test_the_first_matrix_of_lora_is_never_cut_by_heads(rank):
    class Lora(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(WIDTH, rank, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, WIDTH, bias=False)})

    found = partition(attention(Lora))
    assert found["attn.q_proj.lora_A.default.weight"].count == rank
    assert found["attn.q_proj.lora_B.default.weight"].count == HEADS


def test_trained_tokens_and_prompts_have_a_block_each():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Embedding(10, WIDTH).requires_grad_(False)
            self.trainable_tokens_delta = nn.ParameterDict({"default": nn.Parameter(torch.randn(3, WIDTH))})

    prompted = named("AdaptedAttention", model=Attention(), adaption_prompt=nn.Parameter(torch.randn(1, 5, WIDTH)),
                     adaption_gate=nn.Parameter(torch.zeros(1)))  # fmt: skip
    found = partition(nn.ModuleDict({"tokens": Tokens(), "attn": prompted}))
    assert found["tokens.trainable_tokens_delta.default"].count == 3
    assert found["attn.adaption_prompt"].count == 5 and found["attn.adaption_gate"].count == 1


def test_a_tensor_that_no_adapter_is_known_to_have_is_asked_about():
    with pytest.raises(Misfit, match=r"strange_core\.default: a bare parameter"):
        partition(attention(lambda: RateGrid("strange_core", (4, 5))))
