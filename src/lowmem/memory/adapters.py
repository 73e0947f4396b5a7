"""LoRA adapters and 4-bit base weights as the accountant needs them: what they keep and copy, without what they compute.

LoRA (Hu et al., arXiv 2106.09685) as peft has it: adapters in fp32 beside 16-bit weights, inputs cast to them. QLoRA
(Dettmers et al., arXiv 2305.14314) as bitsandbytes has it: each linear layer but the output unpacks its weight anew in
forward and in backward; the packed weights are split over GPUs, their scales are on each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse, nearest
from lowmem.memory.adapter_settings import BASES, EVERY, Adapters, check

OUTPUT = ("lm_head", "head", "output", "embed_out")


def attach(model: nn.Module, adapters: Adapters, sharded: bool) -> nn.Module:
    """Freeze a 16-bit model on the meta device, pack its linear layers where asked for, and put the adapters on."""
    check(adapters)
    model.requires_grad_(False)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and _last(name) not in OUTPUT}
    every = adapters.targets == EVERY
    present = sorted({_last(name) for name in linear})
    for name in () if every else adapters.targets:
        if name not in present:
            raise Misuse(f"lora targets: no linear layer is called {name!r}{nearest(name, present)}")
    chosen = [name for name in linear if every or _last(name) in adapters.targets]
    if not chosen:
        raise Misuse("lora targets: the model has no nn.Linear layer but the output")
    dtype = torch.float32 if adapters.dtype == "fp32" or (adapters.dtype is None and not sharded) else None
    if adapters.base != "16":
        whole = sum(p.numel() for p in model.parameters())
        if sum(p.numel() for p in model.parameters() if p.ndim > 2) > whole / 10:
            raise Misuse(
                f"base {adapters.base}: experts that are one tensor stay in 16 bits in bitsandbytes; use --base 16"
            )
    for name, layer in linear.items():
        base = layer if adapters.base == "16" else Packed(layer, BASES[adapters.base])
        if name in chosen:
            base = Lora(base, adapters.rank, dtype or layer.weight.dtype, adapters.dropout)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)
    if adapters.base != "16" and adapters.rest == "fp32" and not sharded:
        for module in model.modules():
            if not isinstance(module, (Packed, Lora)):
                for p in module.parameters(recurse=False):
                    p.data = p.data.float()
    return model


def _last(name: str) -> str:
    return name.rpartition(".")[2]


class Lora(nn.Module):
    """y = base(x) + scale * B A x, (..., in) -> (..., out), as peft computes it."""

    def __init__(self, base: nn.Module, rank: int, dtype: torch.dtype, dropout: float):
        super().__init__()
        self.base_layer, self.dtype = base, dtype
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device="meta", dtype=dtype)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device="meta", dtype=dtype)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The frozen weight, by the name under which attention code asks for it."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O): the frozen layer plus twice its low-rank part."""
        out = self.base_layer(x)
        extra = self.lora_B(self.lora_A(self.dropout(x.to(self.dtype)))) * 2.0
        return (out + extra).to(out.dtype)


class Packed(nn.Module):
    """A frozen linear layer of 4 bits per weight; the packed weights look like 16-bit numbers, so that they can be split."""

    def __init__(self, layer: nn.Linear, scale_bytes: float):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, count = layer.weight.dtype, layer.weight.numel()
        packed = torch.empty(-(-count // 4), 1, dtype=self.dtype, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", torch.empty(int(count * scale_bytes), dtype=torch.uint8, device="meta"))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), with the weight unpacked for this product."""
        shape = (self.out_features, self.in_features)
        out = _Unpacked.apply(x.to(self.dtype), self.weight, shape)
        return (out if self.bias is None else out + self.bias).to(x.dtype)


class _Unpacked(torch.autograd.Function):
    """x W^T with W unpacked for the moment, and again in backward. bitsandbytes keeps x too, although nothing needs it."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, packed)
        ctx.shape = shape
        return F.linear(x, packed.new_empty(shape))

    @staticmethod
    def backward(ctx, grad: Tensor):
        _, packed = ctx.saved_tensors
        return torch.matmul(grad, packed.new_empty(ctx.shape).to(grad.dtype)), None, None


def trainable(model: nn.Module) -> int:
    """Weights that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
