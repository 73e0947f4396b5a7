"""Queries beside keys and values in one projection, and fused projections of odd orders: read off a trial, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowmem import partition
from lowmem.blocks import Misfit

WIDTH, HEADS, SIZE = 16, 4, 4
ORDERS = {  # of keys and values, as views of (batch, positions, 2 * width)
    "keys, then values": lambda y: y.unflatten(-1, (2, HEADS, SIZE)).permute(2, 0, 3, 1, 4),
    "values, then keys": lambda y: y.unflatten(-1, (2, HEADS, SIZE)).flip(2).permute(2, 0, 3, 1, 4),
    "head after head": lambda y: y.unflatten(-1, (HEADS, 2, SIZE)).permute(3, 0, 2, 1, 4),
    "interleaved": lambda y: y.unflatten(-1, (2, SIZE, HEADS)).permute(2, 0, 4, 1, 3),
}
EXPECTED = {
    "keys, then values": [4] * 4 + [1] * 16,
    "values, then keys": [1] * 16 + [4] * 4,
    "head after head": ([4] + [1] * 4) * 4,
}
NAMES = [("to_q", "to_kv"), ("q", "kv"), ("q_proj", "kv_proj"), ("wq", "wkv")]


class Attention(nn.Module):
    def __init__(self, names, order):
        super().__init__()
        self.heads, self.names, self.order = HEADS, names, order
        for name, rows in zip(names, (WIDTH, 2 * WIDTH)):
            setattr(self, name, nn.Linear(WIDTH, rows, bias=False))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, rest = (getattr(self, name)(x) for name in self.names)
        k, v = ORDERS[self.order](rest)
        return self.out(F.scaled_dot_product_attention(q.unflatten(-1, (HEADS, SIZE)).transpose(1, 2), k, v)
                        .transpose(1, 2).flatten(2))  # fmt: skip


class Separate(nn.Module):
    def __init__(self, interleaved):
        super().__init__()
        self.num_heads, self.interleaved = HEADS, interleaved
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x):
        def heads(name):
            y = getattr(self, name)(x)
            if name == self.interleaved:
                return y.unflatten(-1, (SIZE, HEADS)).permute(0, 3, 1, 2)
            return y.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads("q_proj"), heads("k_proj"), heads("v_proj"))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    def __init__(self, shape, order):
        super().__init__()
        self.num_heads, self.shape, self.order = HEADS, shape, order
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, self.shape).permute(self.order)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def inside(attention):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, WIDTH), attention, nn.Linear(WIDTH, 11))


def sizes(blocks) -> list[int]:
    return [size for start, stop, size in blocks.segments for _ in range(start, stop, size)]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("order", EXPECTED)
def test_keys_and_values_are_cut_in_the_order_that_the_module_reads_them(names, order):
    found = partition(inside(Attention(names, order)))
    assert sizes(found[f"1.{names[1]}.weight"]) == EXPECTED[order]
    assert sizes(found[f"1.{names[0]}.weight"]) == [SIZE] * HEADS


@pytest.mark.parametrize("names", NAMES)
def test_interleaved_keys_are_refused(names):
    with pytest.raises(Misfit, match="rows of one head of Attention do not lie together"):
        partition(inside(Attention(names, "interleaved")))


@pytest.mark.parametrize("which", ["q_proj", "k_proj"])
def test_separate_queries_or_keys_that_are_interleaved_are_refused(which):
    with pytest.raises(Misfit, match="do not lie together"):
        partition(inside(Separate(which)))
    assert sizes(partition(inside(Separate(None)))["1.k_proj.weight"]) == [SIZE] * HEADS


@pytest.mark.parametrize(
    "shape, order",
    [
        ((HEADS, SIZE, 3), (4, 0, 2, 1, 3)),
        ((3, SIZE, HEADS), (2, 0, 4, 1, 3)),
        ((SIZE, 3, HEADS), (3, 0, 4, 1, 2)),
    ],
)
def test_a_fused_projection_whose_heads_are_interleaved_is_refused(shape, order):
    with pytest.raises(Misfit, match="do not lie together"):
        partition(inside(Fused(shape, order)))


def test_other_orders_of_a_fused_projection_are_read():
    found = partition(inside(Fused((HEADS, 3, SIZE), (3, 0, 2, 1, 4))))
    assert sizes(found["1.qkv.weight"]) == ([4, 4] + [1] * 4) * 4
