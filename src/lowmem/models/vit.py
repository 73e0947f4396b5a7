"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929): patches as tokens, a class token, a pre-norm encoder.

B images of C channels and S x S pixels, T tokens of width E, H heads of size D.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of

SIZES = {
    "vit-s16": {"n_layer": 12, "n_head": 6, "n_embd": 384},  # 22,050,664 parameters with 1000 classes
    "vit-b16": {"n_layer": 12, "n_head": 12, "n_embd": 768},  # 86,567,656
}


@dataclass
class Config:
    """Shape of the network: images of n_channel x image_size x image_size, patches of patch_size x patch_size."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    image_size: int = 224
    patch_size: int = 16
    n_channel: int = 3
    n_output: int = 1000


class Attention(nn.Module):
    """Self-attention without a mask, (B, T, E) -> (B, T, E). bias (H, T, T) is added to the scores."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.n_head, self.head_dim = n_head, width // n_head
        self.wq = nn.Linear(width, width)
        self.wk = nn.Linear(width, width)
        self.wv = nn.Linear(width, width)
        self.wo = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, T, E), bias (added to the scores) or None -> (B, T, E)"""
        heads = (*x.shape[:2], self.n_head, self.head_dim)
        q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (self.wq, self.wk, self.wv))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.wo(y.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two layers with a GELU between them, (B, T, E) -> (B, T, E)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., E)"""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, n_head)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E)"""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """images (B, C, S, S) -> logits; with targets (B,) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.patches = nn.Conv2d(config.n_channel, config.n_embd, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.n_embd))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, config.n_embd))
        self.blocks = nn.ModuleList(Block(config.n_embd, config.n_head) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.head = nn.Linear(config.n_embd, config.n_output)
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():  # as in the released code: Glorot inside, a head of zeros
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """images (B, C, S, S) -> logits (B, classes), or with targets (B,) their mean cross-entropy."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, T - 1, E)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)[:, 0])
        return logits if targets is None else F.cross_entropy(logits.float(), targets)


def build(size: str | None = None, **settings) -> ViT:
    """A ViT with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("vit", Config, settings, SIZES, size)
    for a, b in (("image_size", "patch_size"), ("n_embd", "n_head")):
        if getattr(config, a) % getattr(config, b):
            raise Misuse(f"vit model: {a} {getattr(config, a)} is not divisible by {b} {getattr(config, b)}")
    return ViT(config)
