"""Causal attention for the models of this package, by the fastest of two equal ways.

PyTorch's fused kernel is the rule. The exception was measured with torch 2.13 on a CPU with bf16 matrix units: the
backward pass of the fused bf16 kernel does not use them, and takes ten times as long as explicit matrix products at
head sizes up to 32 (44 against 4.4 ms for 64 heads of 128 x 32), twice as long at 256 x 64. Beyond 512 positions the
explicit score matrix costs more than it saves.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EXPLICIT_UP_TO = 512  # positions


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """q (B, H, T, D), k and v (B, K, S, D) with K dividing H -> (B, H, T, D).

    mask (B or 1, 1, T, S): True where query t may see key s; default, with S = T: position t sees positions <= t.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= EXPLICIT_UP_TO and dropout == 0.0:
        return explicit(q, k, v, mask)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=k.shape[1] != q.shape[1]
    )


def of_each(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], masks: list[Tensor] | None = None) -> Tensor:
    """Causal attention of texts that lie one behind the other in one row and do not see each other.

    q (1, H, N, D), k and v (1, K, N, D); lengths: of the texts, N in sum; masks: of each text, see causal_attention().
    What this costs grows with the sum of squared lengths, and no place is padding.
    """
    texts = zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), masks or [None] * len(lengths))
    return torch.cat([causal_attention(*text, mask=mask) for *text, mask in texts], dim=2)


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same by two batched matrix products and a softmax, keeping the (B, H, T, S) probabilities for backward."""
    batch, heads, length, size = q.shape
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
        v = v.repeat_interleave(heads // v.shape[1], dim=1)
    if mask is None:
        hidden = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    else:
        hidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        hidden = hidden.expand(batch, heads, -1, -1).flatten(0, 1)  # (B H, T, S)
    q, k, v = (x.reshape(batch * heads, -1, size) for x in (q, k, v))
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=size**-0.5)  # (B H, T, S)
    return torch.bmm(F.softmax(scores, dim=-1), v).view(batch, heads, length, size)
