"""GPT-2: a pre-norm decoder with learned positions and an output layer that is tied unless asked otherwise.

Sizes and settings: the official Adam-mini GPT-2 configurations (bias off, vocabulary padded to 50304, separate
query, key and value). Initialisation: GPT-2 (normal, 0.02; residual projections divided by sqrt(2 n_layer)).
Here B is the batch size, T the sequence length, C = n_embd, H = n_head, D = head_dim, V = vocab_size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._attention import causal_attention
from lowmem.models._config import config_of

# Parameter counts with bias off and 1024 positions; the vocabulary is counted once, since it is tied.
SIZES = {
    "125m": {"n_layer": 12, "n_head": 12, "n_embd": 768},  # 124,373,760 parameters
    "330m": {"n_layer": 24, "n_head": 16, "n_embd": 1024},  # 354,599,936
    "770m": {"n_layer": 36, "n_head": 20, "n_embd": 1280},  # 773,582,080
    "1.5b": {"n_layer": 48, "n_head": 25, "n_embd": 1600},  # 1,556,840,000
}


@dataclass
class Config:
    """Shape of the network; `bias` switches the biases of all linear layers and norms. None: n_hidden = 4 n_embd."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50304
    block_size: int = 1024
    dropout: float = 0.0
    bias: bool = False
    n_hidden: int | None = None
    tied: bool = True


class Attention(nn.Module):
    """Causal self-attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_head = self.n_kv_head = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.dropout = config.dropout
        self.wq = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.wk = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.wv = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.wo = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        heads = (*x.shape[:2], self.n_head, self.head_dim)  # (B, T, H, D)
        q = self.wq(x).view(heads).transpose(1, 2)  # (B, H, T, D)
        k = self.wk(x).view(heads).transpose(1, 2)
        v = self.wv(x).view(heads).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, dropout)  # (B, H, T, D)
        return self.wo(y.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two layers with a GELU between them, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: Config):
        super().__init__()
        hidden = config.n_hidden or 4 * config.n_embd
        self.up = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One pre-norm Transformer layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT2(nn.Module):
    """tokens (B, T) -> logits (B, T, V); with targets (B, T) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """GPT-2 paper, section 2.3: residual projections are scaled down so that depth does not grow the stream."""
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.wo.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=residual)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, ignore_index: int = -1) -> Tensor:
        """tokens (B, T) -> logits (B, T, V), or with targets (B, T) their mean cross-entropy without ignore_index."""
        length = tokens.shape[1]
        x = self.dropout(self.tokens(tokens) + self.positions.weight[:length])  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))  # (B, T, V)
        if targets is None:
            return logits
        # fp32, since a 16-bit log-softmax loses the digits in which optimizers differ
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=ignore_index)


def build(size: str | None = None, **settings) -> GPT2:
    """A GPT-2 with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("gpt2", Config, settings, SIZES, size)
    if config.n_embd % config.n_head:
        raise Misuse(f"gpt2 model: n_embd {config.n_embd} is not divisible by n_head {config.n_head}")
    return GPT2(config)
