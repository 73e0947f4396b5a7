"""The U-Net of DDPM (Ho et al., arXiv 2006.11239): residual blocks at falling and rising resolution, attention at some.

B noisy images of C channels, S x S pixels, and their times (B,) -> the noise in them, of the images' shape. The default is
the network for CIFAR-10, 35,746,307 parameters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of


@dataclass
class Config:
    """Shape of the network. multipliers: channels of each resolution, in units of width; resolutions halve.
    attention: pixels per side of the resolutions with attention. groups: of every group norm.
    """

    image_size: int = 32
    n_channel: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    n_block: int = 2
    attention: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.1


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with the time between them, (B, I, S, S) -> (B, O, S, S)."""

    def __init__(self, n_input: int, n_output: int, n_time: int, config: Config):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, n_input)
        self.conv1 = nn.Conv2d(n_input, n_output, 3, padding=1)
        self.time = nn.Linear(n_time, n_output)
        self.norm2 = nn.GroupNorm(config.groups, n_output)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(n_output, n_output, 3, padding=1)
        self.shortcut = nn.Conv2d(n_input, n_output, 1) if n_input != n_output else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # a block starts as its shortcut

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, I, S, S), time (B, F) -> (B, O, S, S)"""
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(y))))


class Attention(nn.Module):
    """One head over all pixels, beside a shortcut, (B, O, S, S) -> (B, O, S, S)."""

    n_head = 1

    def __init__(self, width: int, config: Config):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, width)
        self.wq, self.wk, self.wv = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.wo = nn.Linear(width, width)
        nn.init.zeros_(self.wo.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O, S, S) -> (B, O, S, S)"""
        y = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, S^2, O)
        y = self.wo(F.scaled_dot_product_attention(self.wq(y), self.wk(y), self.wv(y)))
        return x + y[:, 0].transpose(1, 2).reshape(x.shape)


class Up(nn.Module):
    """(B, O, S, S) -> (B, O, 2 S, 2 S)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O, S, S) -> (B, O, 2 S, 2 S)"""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Step(nn.Module):
    """A residual block, and attention behind it where this resolution has it."""

    def __init__(self, n_input: int, n_output: int, size: int, n_time: int, config: Config):
        super().__init__()
        self.block = ResidualBlock(n_input, n_output, n_time, config)
        self.attention = Attention(n_output, config) if size in config.attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, I, S, S), time (B, F) -> (B, O, S, S)"""
        return self.attention(self.block(x, time))


class UNet(nn.Module):
    """(images (B, C, S, S), times (B,)) -> predicted noise (B, C, S, S). labels are accepted and not used."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        n_time, widths = 4 * config.width, [config.width * k for k in config.multipliers]
        self.time = nn.Sequential(nn.Linear(config.width, n_time), nn.SiLU(), nn.Linear(n_time, n_time))
        self.first = nn.Conv2d(config.n_channel, config.width, 3, padding=1)
        kept, width, size = [config.width], config.width, config.image_size
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(widths):
            for _ in range(config.n_block):
                self.down.append(Step(width, after, size, n_time, config))
                width = after
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                size //= 2
                kept.append(width)
        self.middle1 = ResidualBlock(width, width, n_time, config)
        self.middle_attention = Attention(width, config)
        self.middle2 = ResidualBlock(width, width, n_time, config)
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(config.n_block + 1):
                self.up.append(Step(width + kept.pop(), after, size, n_time, config))
                width = after
            if level:
                self.up.append(Up(width))
                size *= 2
        self.norm = nn.GroupNorm(config.groups, width)
        self.last = nn.Conv2d(width, config.n_channel, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """images (B, C, S, S), times (B,) -> predicted noise, shaped as the images; labels are not read."""
        time = self.time(time_features(times, self.config.width))
        x = self.first(images)
        kept = [x]
        for layer in self.down:
            x = layer(x, time) if isinstance(layer, Step) else layer(x)
            kept.append(x)
        x = self.middle2(self.middle_attention(self.middle1(x, time)), time)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], 1), time) if isinstance(layer, Step) else layer(x)
        return self.last(F.silu(self.norm(x)))


def time_features(times: Tensor, width: int) -> Tensor:
    """Sines and cosines of times (B,) at frequencies from 1 to 1/10000: (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=times.device, dtype=torch.float32))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def build(**settings) -> UNet:
    """A U-Net with fresh weights from the global generator. settings: fields of Config."""
    config = config_of("unet", Config, settings)
    if config.image_size % 2 ** (len(config.multipliers) - 1):
        raise Misuse(f"unet model: {config.image_size} pixels cannot be halved {len(config.multipliers) - 1} times")
    if any(config.width * k % config.groups for k in config.multipliers):
        raise Misuse(f"unet model: width {config.width} does not divide into {config.groups} groups")
    return UNet(config)
