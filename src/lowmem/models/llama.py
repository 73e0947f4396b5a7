"""Llama: RMSNorm, rotary positions, SwiGLU and grouped-query attention. Also Llama 2 and 3, TinyLlama and SmolLM2.

Rotary positions follow the Hugging Face convention (the two halves of a head rotate together), so that those
checkpoints load without permuting rows. Initialisation: the torchtitan fork of the official Adam-mini runs.
Here B is the batch size, T the sequence length, C = n_embd, H = n_head, K = n_kv_head, D = head_dim, V = vocab_size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._attention import causal_attention, of_each
from lowmem.models._config import config_of
from lowmem.models._shuffle import shuffle


def _shape(n_layer: int, n_head: int, n_embd: int, n_hidden: int, **others) -> dict:
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_hidden": n_hidden, **others}


SIZES = {
    # the scaling-law family of Adam-mini: vocabulary 32000, untied, 512 tokens
    "20m": _shape(4, 4, 256, 768, block_size=512),  # 19,794,176 parameters
    "39m": _shape(8, 6, 384, 1024, block_size=512),  # 38,738,304
    "67m": _shape(10, 8, 512, 1536, block_size=512),  # 66,857,472
    "102m": _shape(12, 10, 640, 1792, block_size=512),  # 101,924,480
    "162m": _shape(16, 12, 768, 2048, block_size=512),  # 162,423,552
    "271m": _shape(16, 16, 1024, 2816, block_size=512),  # 271,090,688
    "1b": _shape(18, 16, 2048, 5632, block_size=512),  # 1,055,991,808
    # released models
    "tinyllama-1.1b": _shape(22, 32, 2048, 5632, n_kv_head=4),  # 1,100,048,384
    "llama-7b": _shape(32, 32, 4096, 11008),  # 6,738,415,616; LLaMA 1, the model of LOMO
    "llama-13b": _shape(40, 40, 5120, 13824),  # 13,015,864,320
    "llama-30b": _shape(60, 52, 6656, 17920),  # 32,528,943,616
    "llama-65b": _shape(80, 64, 8192, 22016),  # 65,285,660,672
    "llama2-7b": _shape(32, 32, 4096, 11008, block_size=4096),  # 6,738,415,616
    "llama2-13b": _shape(40, 40, 5120, 13824, block_size=4096),  # 13,015,864,320
    "llama3-8b": _shape(
        32, 32, 4096, 14336, n_kv_head=8, vocab_size=128256, block_size=8192, rope_base=5e5
    ),  # 8,030,261,248
    "smollm2-135m": _shape(30, 9, 576, 1536, n_kv_head=3, vocab_size=49152, block_size=8192, rope_base=1e5, tied=True),
}  # smollm2-135m: 134,515,008


@dataclass
class Config:
    """Shape of the network. None: n_kv_head = n_head, head_dim = n_embd / n_head."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    n_hidden: int = 768
    n_kv_head: int | None = None
    head_dim: int | None = None
    vocab_size: int = 32000
    block_size: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    init_std: float = 0.02  # of query, key, value and gate; out, up and down start smaller with their depth
    shuffled: str | None = None  # pattern of modules whose weights are kept in a random order, see _shuffle.py


def rotary_table(block_size: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position x frequency, each (block_size, D) in fp32; RoFormer (arXiv 2104.09864) eq. 15."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
    angles = torch.outer(torch.arange(block_size, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of the last dimension of x (..., T, D) by the angles of their position."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def extended(cache: list[Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of earlier tokens with the new ones behind them, (B, K, S, D), which the cache then holds too.

    cache: [] at first, then [keys, values] of one layer.
    """
    cache[:] = [torch.cat((old, new), dim=2) for old, new in zip(cache, (k, v), strict=True)] if cache else [k, v]
    return cache[0], cache[1]


class Attention(nn.Module):
    """Causal grouped-query attention, (B, T, C) -> (B, T, C). With a cache the tokens also see those before."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.wq = nn.Linear(config.n_embd, config.n_head * config.head_dim, bias=False)
        self.wk = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.wv = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask=None, cache: list | None = None, lengths=None):
        """x (B, T, C), cos and sin of the positions -> (B, T, C); cache, lengths: see Llama.forward."""
        batch, length, _ = x.shape
        q = self.wq(x).view(batch, length, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.wk(x).view(batch, length, self.n_kv_head, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.wv(x).view(batch, length, self.n_kv_head, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = extended(cache, k, v)  # (B, K, S, D)
        y = of_each(q, k, v, lengths, mask) if lengths else causal_attention(q, k, v, mask=mask)  # (B, H, T, D)
        return self.wo(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), (B, T, C) -> (B, T, C)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One pre-norm Transformer layer."""

    def __init__(self, config: Config):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask=None, cache: list | None = None, lengths=None):
        """(B, T, C) -> (B, T, C); see Attention.forward."""
        x = x + self.attention(self.norm1(x), cos, sin, mask, cache, lengths)
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """tokens (B, T) -> logits (B, T, V); with targets (B, T) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        cos, sin = rotary_table(config.block_size, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)  # (block_size, D)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()
        if config.shuffled:
            shuffle(self, config.shuffled)

    @torch.no_grad()
    def initialise(self) -> None:
        """Truncated normals; up, down and wo shrink with the depth of their layer."""
        nn.init.normal_(self.tokens.weight)
        for depth, block in enumerate(self.blocks):
            residual = self.config.init_std / math.sqrt(2 * (depth + 1))
            for linear in (block.attention.wq, block.attention.wk, block.attention.wv, block.mlp.gate):
                nn.init.trunc_normal_(linear.weight, std=self.config.init_std)
            for linear in (block.attention.wo, block.mlp.up, block.mlp.down):
                nn.init.trunc_normal_(linear.weight, std=residual)
        # a tied table keeps the usual 0.02: larger rows would make each token predict itself
        std = 0.02 if self.config.tied else self.config.n_embd**-0.5
        nn.init.trunc_normal_(self.head.weight, std=std, a=-3 * std, b=3 * std)

    def empty_cache(self) -> list[list[Tensor]]:
        """Where forward() may keep the keys and values of all tokens so far, a list for each layer."""
        return [[] for _ in self.blocks]

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | list[Tensor] | None = None,
        cache: list | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """tokens (B, T) -> what the head turns into logits, (B, T, C), for those who need few of the logits.

        positions (B, T): place of each token in its text, default 0 ... T - 1. mask (B, 1, T, S): True where a query
        (third axis) may see a key (fourth), default the causal one. Both together let texts branch. cache: see
        empty_cache(); the tokens go on where those in the cache ended, and S counts both; positions and mask are needed.
        lengths: B is 1 and the row holds texts of these lengths one behind the other, which do not see each other and are
        not padded; mask is then a list with one for each text, or None.
        """
        if lengths and positions is None:
            positions = torch.cat([torch.arange(length, device=tokens.device) for length in lengths])[None]
        if positions is None:
            cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]  # (T, D)
        else:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # (B, 1, T, D)
        x = self.tokens(tokens)  # (B, T, C)
        for block, kept in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x = block(x, cos, sin, mask, kept, lengths)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        ignore_index: int = -1,
        positions: Tensor | None = None,
        mask: Tensor | list[Tensor] | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        cache: list | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """at = (rows (N,), columns (N,)): only the logits of these places, (N, V). The others: see hidden()."""
        x = self.hidden(tokens, positions, mask, cache, lengths)  # (B, T, C)
        logits = self.head(x if at is None else x[at])  # (B, T, V) or (N, V)
        if targets is None:
            return logits
        # fp32, since a 16-bit log-softmax loses the digits in which optimizers differ
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=ignore_index)


def build(size: str | None = None, **settings) -> Llama:
    """A Llama with fresh weights from the global generator. size: a key of SIZES; settings: fields of Config."""
    config = config_of("llama", Config, settings, SIZES, size)
    if config.head_dim is None and config.n_embd % config.n_head:
        raise Misuse(f"llama model: n_embd {config.n_embd} is not divisible by n_head {config.n_head}; set head_dim")
    config.head_dim = config.head_dim or config.n_embd // config.n_head
    config.n_kv_head = config.n_kv_head or config.n_head
    if config.n_head % config.n_kv_head or config.head_dim % 2:
        raise Misuse(f"llama model: n_kv_head must divide n_head and head_dim must be even, got {config}")
    return Llama(config)
