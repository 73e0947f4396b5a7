"""ResNet of basic blocks (He et al., arXiv 1512.03385), with the ImageNet stem or the small-image stem of its section 4.2.

B images of C channels and S x S pixels: (B, C, S, S) -> logits (B, n_output).
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of

STEMS = ("small", "imagenet")
SIZES = {"resnet18": {"depths": (2, 2, 2, 2)}, "resnet34": {"depths": (3, 4, 6, 3)}}  # 11,689,512 and 21,797,672


@dataclass
class Config:
    """Shape of the network. width: channels of the first stage, doubled at each further one. depths: blocks per stage.
    stem: "imagenet" shrinks the image by four before the first stage, "small" not at all.
    """

    n_channel: int = 3
    n_output: int = 1000
    width: int = 64
    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem: str = "imagenet"


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, (B, I, S, S) -> (B, O, S / stride, S / stride)."""

    def __init__(self, n_input: int, n_output: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_input, n_output, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_output)
        self.conv2 = nn.Conv2d(n_output, n_output, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_output)
        self.shortcut = nn.Identity()
        if stride != 1 or n_input != n_output:
            self.shortcut = nn.Sequential(nn.Conv2d(n_input, n_output, 1, stride, bias=False), nn.BatchNorm2d(n_output))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, S, S) -> (B, O, S / stride, S / stride)"""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """images (B, C, S, S) -> logits; with targets (B,) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        small = config.stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv = nn.Conv2d(config.n_channel, config.width, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(config.width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        stages, before = [], config.width
        for stage, depth in enumerate(config.depths):
            after = config.width * 2**stage
            for block in range(depth):
                stages.append(Block(before, after, 2 if stage and not block else 1))
                before = after
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(before, config.n_output)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """What the output layer sees: (B, width of the last stage)."""
        return self.blocks(self.pool(F.relu(self.norm(self.conv(images))))).mean((2, 3))

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """images (B, 3, S, S) -> logits (B, classes), or with targets (B,) their mean cross-entropy."""
        logits = self.head(self.features(images))
        return logits if targets is None else F.cross_entropy(logits.float(), targets)


def build(size: str | None = None, **settings) -> ResNet:
    """A ResNet with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("resnet", Config, settings, SIZES, size)
    if config.stem not in STEMS:
        raise Misuse(f"resnet model: unknown stem {config.stem!r}; choose from: {', '.join(STEMS)}")
    return ResNet(config)
