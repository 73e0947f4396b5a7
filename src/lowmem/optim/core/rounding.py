"""Rounding fp32 results into 16-bit storage: to nearest, stochastically, or to nearest with the next 8 bits kept beside.

Nearest rounding loses every update smaller than half a unit in the last place, which stalls training in 16-bit weights
without a master copy; stochastic rounding keeps updates right on average; with 8 more bits a bf16 weight has 24.
"""

import torch
from torch import Tensor

FP16_LOWEST_EXPONENT = -24  # subnormal fp16 numbers are multiples of 2^-24
FP16_DIGITS = 11
BF16_EXPONENT = 0x7F800000  # all exponent bits are set in inf and nan, and in no other number


def round_into(target: Tensor, source: Tensor, rounding: str = "nearest", wait: bool = True) -> None:
    """Copy source (fp32 or fp64, same shape) into target in place, rounding to target's dtype.

    wait: False lets a copy from a GPU into pinned memory run on; the caller waits before anybody reads it.
    """
    if rounding == "stochastic" and target.dtype in (torch.bfloat16, torch.float16):
        source = stochastic_bf16(source) if target.dtype == torch.bfloat16 else stochastic_fp16(source)
    target.copy_(source, non_blocking=not wait)


def stochastic_bf16(x: Tensor) -> Tensor:
    """bf16 neighbours of fp32 x with probabilities that make the mean x: add noise below the kept bits, cut them off."""
    bits = x.float().view(torch.int32)
    rounded = torch.randint_like(bits, 0, 1 << 16).add_(bits).bitwise_and_(-65536).view(torch.float32)
    finite = bits.bitwise_and(BF16_EXPONENT) != BF16_EXPONENT  # noise would carry a GPU's nan, 0x7fffffff, into -0
    return torch.where(finite, rounded, x.float())


def stochastic_fp16(x: Tensor) -> Tensor:
    """fp16 neighbours of fp32 x, the upper one with the probability that makes the mean x. All but the draw is exact."""
    x = x.float()
    _, exponent = torch.frexp(x)  # |x| = mantissa * 2^exponent, mantissa in [0.5, 1)
    unit = torch.ldexp(torch.ones_like(x), (exponent - FP16_DIGITS).clamp(min=FP16_LOWEST_EXPONENT))
    lower = (x / unit).floor()
    up = torch.rand_like(x) < x / unit - lower
    return torch.where(x.isfinite(), torch.where(up, lower + 1, lower) * unit, x)


def with_low_bits(high: Tensor, low: Tensor) -> Tensor:
    """fp32 numbers of 24 bits from bf16 weights and the 8 bits that follow theirs.

    Of a weight of 0 there are none: somebody has set it to 0 since they were kept, and negative ones would make it nan.
    """
    bits = high.contiguous().view(torch.int16).to(torch.int32) << 16
    return bits.add_((low.to(torch.int32) << 8).masked_fill_(high == 0, 0)).view(torch.float32)


def low_bits(x: Tensor, high: Tensor) -> Tensor:
    """The 8 bits of fp32 x, as signed numbers, after those of its bf16 neighbours; 0 where those are not finite."""
    beyond = x.view(torch.int32) - (high.contiguous().view(torch.int16).to(torch.int32) << 16)
    found = ((beyond + 128) >> 8).clamp_(-128, 127)
    return torch.where(high.isfinite(), found, 0).to(torch.int8)
