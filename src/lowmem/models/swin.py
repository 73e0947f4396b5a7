"""Swin Transformer (Liu et al., arXiv 2103.14030): attention inside windows that shift from layer to layer, in stages.

B images; a stage has R x R tokens of width E, windows of M x M tokens, H heads. Positions are a learned bias per head
and relative place. Swin-T on ImageNet is the default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of
from lowmem.models.vit import Attention, Mlp

SIZES = {"swin-t": {}}  # 28,288,354 parameters with 1000 classes


@dataclass
class Config:
    """Shape of the network. depths and heads: per stage; each further stage has half the resolution and twice the width.
    drop_path: share of the last layer's residuals that training leaves out, rising linearly over the layers.
    """

    image_size: int = 224
    patch_size: int = 4
    n_channel: int = 3
    n_embd: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.2
    n_output: int = 1000


class WindowAttention(Attention):
    """Attention inside each window with a learned bias, (B windows, M^2, E) -> same. mask: (windows, M^2, M^2) or None."""

    def __init__(self, width: int, n_head: int, window: int):
        super().__init__(width, n_head)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, n_head))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("places", relative_places(window), persistent=False)  # (M^2, M^2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (windows, M^2, E), mask (windows of one image, M^2, M^2) or None -> x's shape."""
        bias = self.relative_position_bias_table[self.places.flatten()]  # (M^4, H)
        bias = bias.view(*self.places.shape, -1).permute(2, 0, 1)[None]  # (1, H, M^2, M^2)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(
                len(x) // len(mask), 1, 1, 1
            )  # windows are the inner part of the batch
        return super().forward(x, bias)


def relative_places(window: int) -> Tensor:
    """Row of the bias table for each pair of places in a window, (M^2, M^2)."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(
        1
    )  # (2, M^2)
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(resolution: int, window: int, shift: int) -> Tensor:
    """-100 where two tokens of a shifted window come from opposite edges of the image, else 0: (windows, M^2, M^2)."""
    edge = torch.zeros(resolution, dtype=torch.long)
    edge[-window:-shift], edge[-shift:] = 1, 2
    region = (3 * edge[:, None] + edge[None, :])[None, :, :, None]  # (1, R, R, 1)
    region = windows_of(region, window)[..., 0]  # (windows, M^2)
    return (region[:, :, None] != region[:, None, :]) * -100.0


def windows_of(x: Tensor, window: int) -> Tensor:
    """(B, R, R, E) -> (B windows, M^2, E)."""
    batch, resolution, _, width = x.shape
    count = resolution // window
    x = x.view(batch, count, window, count, window, width).transpose(2, 3)
    return x.reshape(batch * count**2, window**2, width)


def image_of(x: Tensor, window: int, resolution: int) -> Tensor:
    """(B windows, M^2, E) -> (B, R, R, E), the inverse of windows_of."""
    count = resolution // window
    x = x.view(-1, count, count, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, resolution, resolution, x.shape[-1])


class Block(nn.Module):
    """One pre-norm layer on (B, R, R, E); every second one works on shifted windows."""

    def __init__(self, width: int, n_head: int, resolution: int, window: int, shifted: bool, drop_path: float):
        super().__init__()
        self.window = min(window, resolution)
        self.shift = self.window // 2 if shifted and self.window < resolution else 0
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, n_head, self.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        mask = shift_mask(resolution, self.window, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, R, E) -> (B, R, R, E)"""
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        y = image_of(self.attention(windows_of(y, self.window), self.mask), self.window, x.shape[1])
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + self.kept(y)
        return x + self.kept(self.mlp(self.norm2(x)))

    def kept(self, y: Tensor) -> Tensor:
        """Stochastic depth: in training a share of the images skips this residual, the others make up for it."""
        if not self.training or self.drop_path == 0:
            return y
        keep = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop_path
        return y * keep / (1 - self.drop_path)


class Merging(nn.Module):
    """Two by two neighbours become one token of twice the width, (B, R, R, E) -> (B, R / 2, R / 2, 2 E)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, R, E) -> (B, R / 2, R / 2, 2 E)"""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """images (B, C, S, S) -> logits; with targets (B,) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(config.n_channel, config.n_embd, config.patch_size, config.patch_size)
        self.norm_in = nn.LayerNorm(config.n_embd)
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        width, resolution, self.layers = config.n_embd, config.image_size // config.patch_size, nn.Sequential()
        for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            if stage:
                self.layers.append(Merging(width))
                width, resolution = 2 * width, resolution // 2
            for number in range(depth):
                self.layers.append(Block(width, heads, resolution, config.window, number % 2 == 1, rates.pop(0)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.n_output)
        for module in self.modules():  # as in the released code
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """images (B, C, S, S) -> logits (B, classes), or with targets (B,) their mean cross-entropy."""
        x = self.norm_in(self.patches(images).permute(0, 2, 3, 1))  # (B, R, R, E)
        logits = self.head(self.norm(self.layers(x)).mean((1, 2)))
        return logits if targets is None else F.cross_entropy(logits.float(), targets)


def build(size: str | None = None, **settings) -> Swin:
    """A Swin with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("swin", Config, settings, SIZES, size)
    if len(config.depths) != len(config.heads):
        raise Misuse(
            f"swin model: {len(config.depths)} depths and {len(config.heads)} heads; give one of each per stage"
        )
    check_sizes(config)
    return Swin(config)


def check_sizes(config: Config) -> None:
    """Misuse, naming the sizes, where patches, stages, windows or heads do not divide evenly."""
    resolution, width = config.image_size / config.patch_size, config.n_embd
    for stage, heads in enumerate(config.heads):
        if resolution % 1 or (resolution > config.window and resolution % config.window) or width % heads:
            raise Misuse(
                f"swin model: stage {stage + 1} has {resolution:g} x {resolution:g} tokens of width {width}; they must "
                f"divide into windows of {config.window} and into {heads} heads"
            )
        resolution, width = resolution / 2, width * 2
