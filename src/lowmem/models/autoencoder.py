"""A small deep-compression autoencoder (DC-AE, Chen et al., arXiv 2410.10733): images to a few channels of latents.

Its idea is kept: each halving moves pixels into channels, and a shortcut without weights does the same by averaging (down)
or repeating (up) channels, so that convolutions only learn what that loses. B images (B, C, S, S) -> latents
(B, latent, S / 2^k, S / 2^k), k halvings. Left out: its attention blocks, and its adversarial and perceptual losses.
"""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of


@dataclass
class Config:
    """Shape of the network. widths: channels at full resolution and after each halving. latent: channels of a latent."""

    image_size: int = 32
    n_channel: int = 1
    widths: tuple[int, ...] = (16, 32, 64, 64)
    latent: int = 8


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)"""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Down(nn.Module):
    """(B, I, S, S) -> (B, O, S / 2, S / 2): a convolution, beside 4 I channels of pixels averaged to O."""

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.conv = nn.Conv2d(n_input, n_output, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, O, S / 2, S / 2)"""
        return self.conv(x) + fewer_channels(F.pixel_unshuffle(x, 2), self.conv.out_channels)


class Up(nn.Module):
    """(B, I, S, S) -> (B, O, 2 S, 2 S): a convolution to 4 O channels, beside I channels repeated to 4 O, made pixels."""

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.conv = nn.Conv2d(n_input, 4 * n_output, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, O, 2 S, 2 S)"""
        return F.pixel_shuffle(self.conv(x) + more_channels(x, self.conv.out_channels), 2)


def fewer_channels(x: Tensor, count: int) -> Tensor:
    """Neighbouring channels are averaged."""
    return x.view(len(x), count, -1, *x.shape[2:]).mean(2)


def more_channels(x: Tensor, count: int) -> Tensor:
    """Each channel is repeated."""
    return x.repeat_interleave(count // x.shape[1], dim=1)


class Autoencoder(nn.Module):
    """images -> the images again; encode() and decode() are its halves."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        first, *_, last = widths = config.widths
        halvings = list(itertools.pairwise(widths))
        self.into = nn.Conv2d(config.n_channel, first, 3, padding=1)
        self.down = nn.Sequential(*[layer for a, b in halvings for layer in (Residual(a), Down(a, b))], Residual(last))
        self.to_latent = nn.Conv2d(last, config.latent, 3, padding=1)
        self.from_latent = nn.Conv2d(config.latent, last, 3, padding=1)
        self.up = nn.Sequential(
            Residual(last), *[layer for a, b in reversed(halvings) for layer in (Up(b, a), Residual(a))]
        )
        self.out = nn.Conv2d(first, config.n_channel, 3, padding=1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> latents."""
        x = self.down(self.into(images))
        return self.to_latent(F.silu(x)) + fewer_channels(x, self.config.latent)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, C, S, S)."""
        x = self.from_latent(latents) + more_channels(latents, self.config.widths[-1])
        return self.out(F.silu(self.up(x)))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, S, S) -> their reconstruction, of the same shape."""
        return self.decode(self.encode(images))


def build(**settings) -> Autoencoder:
    """An autoencoder with fresh weights from the global generator. settings: fields of Config."""
    config = config_of("autoencoder", Config, settings)
    halvings = len(config.widths) - 1
    if config.image_size % 2**halvings:
        raise Misuse(f"autoencoder model: {config.image_size} pixels cannot be halved {halvings} times")
    fits = all(4 * a % b == 0 for a, b in itertools.pairwise(config.widths))
    if not fits or config.widths[-1] % config.latent:
        raise Misuse(
            f"autoencoder model: widths {list(config.widths)} must each divide four times the one before, and the last "
            f"must be a multiple of latent {config.latent}"
        )
    return Autoencoder(config)
