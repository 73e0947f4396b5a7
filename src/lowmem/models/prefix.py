"""Prefix tuning (Li and Liang, arXiv 2101.00190): trained keys and values before those of the text, in every layer.

The base model is frozen. The prefix is stored directly, without the paper's reparametrisation by a wider network, and
its keys have no position.
"""

from itertools import repeat

import torch
from torch import Tensor, nn

from lowmem.errors import Misuse
from lowmem.models._attention import causal_attention
from lowmem.models.llama import Attention, extended, rotate


class PrefixAttention(nn.Module):
    """An attention layer whose queries also see P trained keys; (B, T, C) -> (B, T, C)."""

    def __init__(self, inner: Attention, length: int, device: str | None = None):
        super().__init__()
        self.inner = inner
        width = 2 * inner.n_kv_head * inner.head_dim
        where = {"device": device or inner.wk.weight.device, "dtype": inner.wk.weight.dtype}
        self.prefix = nn.Embedding(length, width, **where)  # one row: keys, then values
        nn.init.normal_(self.prefix.weight, std=0.02)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask=None, cache: list | None = None, lengths=None):
        """As Llama's attention, with the learned prefix before the keys and values of every text."""
        inner, (batch, length, _) = self.inner, x.shape
        shape = (batch, length, -1, inner.head_dim)
        q, k, v = (linear(x).view(shape).transpose(1, 2) for linear in (inner.wq, inner.wk, inner.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = extended(cache, k, v)
        first = self.prefix.weight.to(k.dtype).view(1, -1, 2, inner.n_kv_head, inner.head_dim)
        first = first.expand(batch, -1, -1, -1, -1).permute(2, 0, 3, 1, 4)  # (2, B, K, P, D)
        if lengths:
            texts = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), mask or repeat(None))
            y = torch.cat([seeing(first, *text) for text in texts], dim=2)  # (B, H, T, D)
        else:
            y = seeing(first, q, k, v, mask)
        return inner.wo(y.transpose(1, 2).reshape(batch, length, -1))


def seeing(first: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one text, (B, H, T, D), to `first` (2, B, K, P, D), all of which it sees, and to itself."""
    k, v = torch.cat((first[0], k), dim=2), torch.cat((first[1], v), dim=2)
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
    seen = mask.new_ones(mask.shape[0], 1, q.shape[2], first.shape[3])
    return causal_attention(q, k, v, mask=torch.cat((seen, mask), dim=-1))


def attach(model: nn.Module, length: int = 20, device: str | None = None) -> None:
    """Freeze a Llama and give each of its attention layers `length` trained keys and values, in place.

    device: of the prefixes, where the layers have no weights yet (null: as theirs).
    """
    if not isinstance(length, int) or length < 1:
        raise Misuse(f"model.adapter.length is {length!r}; it must be a whole number of 1 or more")
    model.requires_grad_(False)
    for block in model.blocks:
        block.attention = PrefixAttention(block.attention, length, device)
