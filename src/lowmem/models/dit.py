"""Diffusion Transformer with adaLN-Zero (Peebles and Xie, arXiv 2212.09748): time and class steer every layer's norms.

B noisy images or latents of C channels, S x S, their times (B,) and labels (B,) -> the noise in them. T tokens of width E.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowmem.errors import Misuse
from lowmem.models._config import config_of
from lowmem.models.unet import time_features
from lowmem.models.vit import Attention, Mlp

# Counts of the released networks, whose output has twice the channels (a learned variance) and whose position table,
# which does not train, is counted: 33.0, 130.5, 458.1, 675.1 million.
SIZES = {
    "dit-s2": {"n_layer": 12, "n_head": 6, "n_embd": 384},
    "dit-b2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "dit-l2": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "dit-xl2": {"n_layer": 28, "n_head": 16, "n_embd": 1152},
}


@dataclass
class Config:
    """Shape of the network. n_output_channel: None for as many as the input has. n_class: labels 0 ... n_class - 1;
    n_class itself stands for no label.
    """

    n_layer: int = 28
    n_head: int = 16
    n_embd: int = 1152
    image_size: int = 32
    patch_size: int = 2
    n_channel: int = 4
    n_output_channel: int | None = None
    n_class: int = 1000


class Block(nn.Module):
    """One layer whose norms and residuals are scaled and shifted by the condition; it starts as the identity."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, n_head)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, E), condition (B, E) -> (B, T, E)"""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """(images (B, C, S, S), times (B,), labels (B,) or None) -> predicted noise."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width, self.side = config.n_embd, config.image_size // config.patch_size
        self.n_output = config.n_output_channel or config.n_channel
        self.patches = nn.Conv2d(config.n_channel, width, config.patch_size, config.patch_size)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(config.n_class + 1, width)
        self.blocks = nn.ModuleList(Block(width, config.n_head) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, config.patch_size**2 * self.n_output)
        self.register_buffer("positions", position_table(self.side, width), persistent=False)  # (T, E)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Section 3.2 and the released code: Glorot for linear layers, 0 for what modulates and for the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.view(self.config.n_embd, -1))
        nn.init.zeros_(self.patches.bias)
        for layer in (self.labels, self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation[1] for block in self.blocks), self.modulation[1], self.last):
            nn.init.zeros_(layer.weight)

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """images (B, C, S, S), times (B,), labels (B,) or None -> predicted noise, shaped as the images."""
        if labels is None:
            labels = torch.full_like(times, self.config.n_class, dtype=torch.long)
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # (B, T, E)
        condition = self.time(time_features(times, 256)) + self.labels(labels)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.last(self.norm(x) * (1 + scale) + shift)
        x = x.view(len(x), self.side, self.side, self.config.patch_size, self.config.patch_size, self.n_output)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.n_output, *images.shape[2:])


def position_table(side: int, width: int) -> Tensor:
    """Fixed sines and cosines of row and column, half of the width each: (side^2, width)."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([time_features(place.flatten(), width // 2) for place in (column, row)], 1)


def build(size: str | None = None, **settings) -> DiT:
    """A DiT with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("dit", Config, settings, SIZES, size)
    for a, b in (("image_size", config.patch_size), ("n_embd", config.n_head), ("n_embd", 4)):
        if getattr(config, a) % b:
            raise Misuse(f"dit model: {a} {getattr(config, a)} is not divisible by {b}")
    return DiT(config)
