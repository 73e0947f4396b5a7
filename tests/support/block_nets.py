"""Small models, of which tests of the partition know every block."""

import ast
import re

import pytest
import torch
from torch import nn

from lowmem.blocks import Misfit, partition
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
