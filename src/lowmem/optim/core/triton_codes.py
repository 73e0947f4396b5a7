"""One step of Adam with a first moment in 8-bit codes (eight_bit.py), in Triton: no copy of a moment in memory.

codes    whole blocks of codes, some at a time, in the order of elements: decoded, moved, their new scale, encoded. The rate
         of an element comes from its v, or, where elements share one (SHARED), from `rates`, which sums_long, sums_strided
         and settle (triton_kernels.py) have filled before; the strips say which block it belongs to.
"""

import triton
import triton.language as tl

from lowmem.optim.core.triton_kernels import (
    BLOCKS,
    COLUMNS,
    FACTOR,
    G_OFFSET,
    GROUP,
    NUMBERS,
    OUTER,
    RATE,
    RUN,
    STRIDE,
    M,
    P,
    V,
    bounded,
    gradient_of,
    moved,
    moving,
    random_bits,
    second_moment,
    stored,
)

SCALE, FIRST, COUNT, NUMEL = (
    tl.constexpr(i) for i in range(5, 9)
)  # columns of a tensor in codes; others as of a strip
BLOCK = tl.constexpr(256)
LEVELS = tl.constexpr(127.0)
SMALLEST = tl.constexpr(1e-30)
INFINITE = tl.constexpr(0x7F800000)
WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: a number below 2^22 loses its digits after the point when this is added


@triton.jit
def rates_of(segments, row, rates, at, mask):
    """The rate of each element of a tensor whose elements share second moments. at: int32 numbers of elements."""
    strip = segments + tl.load(row + FIRST) * COLUMNS
    left = tl.load(row + COUNT)
    found = tl.zeros(at.shape, tl.float32)
    while left > 0:
        stride, run = tl.load(strip + STRIDE).to(tl.int32), tl.load(strip + RUN).to(tl.int32)
        width = tl.load(strip + BLOCKS).to(tl.int32) * run
        inside = at - tl.load(strip + G_OFFSET).to(tl.int32)
        stride = tl.where(stride < 0, width, stride)  # contiguous blocks have none
        line = inside // stride
        here = mask & (inside >= 0) & (line < tl.load(strip + OUTER).to(tl.int32)) & (inside - line * stride < width)
        block = (inside - line * stride) // run
        found = tl.load(rates + tl.load(strip + RATE) + block, mask=here, other=0) + tl.where(here, 0.0, found)
        strip += COLUMNS
        left -= 1
    return found


@triton.jit(do_not_specialize=["seed"])
def codes(segments, tiles, gradients, groups, rates, seed, PT: tl.constexpr, GT: tl.constexpr, VT: tl.constexpr,
          STOCH: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr, SKIPS: tl.constexpr, SHARED: tl.constexpr,
          ROWS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    first = tl.load(tiles + 2 * t + 1)
    start = first.to(tl.int64) * BLOCK
    p = tl.load(row + P).to(tl.pointer_type(PT)) + start
    q = tl.load(row + M).to(tl.pointer_type(tl.int8)) + start
    scale = tl.load(row + SCALE).to(tl.pointer_type(tl.float32)) + first
    if ONE:
        g = gradients + start
    else:
        g = gradient_of(gradients, row, GT, ONE) + start
    left = tl.minimum(tl.load(row + NUMEL) - start, ROWS * BLOCK).to(tl.int32)
    if EVEN:
        p, q, g, left = tl.multiple_of(p, 16), tl.multiple_of(q, 16), tl.multiple_of(g, 16), tl.multiple_of(left, 8)
    b = tl.arange(0, ROWS)
    at = b[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    numbers = groups + tl.load(row + GROUP) * NUMBERS
    left = moving(left, numbers, SKIPS)
    mask = at < left
    x = tl.load(g + at, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    root = tl.load(q + at, mask=mask, other=0).to(tl.float32) * (1.0 / LEVELS)
    old = tl.abs(root) * root * tl.load(scale + b, mask=b * BLOCK < left, other=0)[:, None]
    noise = random_bits(row, start + at.to(tl.int64), seed, STOCH, False)
    if SHARED:
        rate = rates_of(segments, row, rates, start.to(tl.int32) + at, mask)
    else:
        v = tl.load(row + V).to(tl.pointer_type(VT)) + start
        if EVEN:
            v = tl.multiple_of(v, 16)
        new_v, rate = second_moment(tl.load(v + at, mask=mask, other=0).to(tl.float32), bounded(x * x), numbers)
        tl.store(v + at, stored(new_v, noise & 0xFFFF, VT, False, EXPLICIT), mask=mask)
    w, m = moved(tl.load(p + at, mask=mask, other=0).to(tl.float32), old, x, rate, numbers)
    tl.store(p + at, stored(w, noise & 0xFFFF, PT, STOCH, EXPLICIT), mask=mask)
    size = tl.where(mask, tl.abs(m), 0.0)
    most = tl.max(
        size.to(tl.int32, bitcast=True), axis=1
    )  # sizes are in order as whole numbers; inf and nan beyond all
    finite = most < INFINITE
    kept = most.to(tl.float32, bitcast=True)
    tl.store(scale + b, tl.where(finite, kept, float("nan")), mask=b * BLOCK < left)
    share = tl.where(finite[:, None], size * (1.0 / tl.maximum(kept, SMALLEST))[:, None], 0.0)
    if STOCH:
        lower = tl.minimum(tl.floor(tl.sqrt(share) * LEVELS), LEVELS - 1)
        below, above = lower * (1.0 / LEVELS), (lower + 1) * (1.0 / LEVELS)
        below, above = below * below, above * above
        chance = (noise >> 16).to(tl.float32) * (1.0 / 65536.0)
        code = lower + tl.where(chance * (above - below) < share - below, 1.0, 0.0)
    else:
        code = (tl.sqrt(share) * LEVELS + WHOLE) - WHOLE
    tl.store(q + at, tl.where(m < 0, -code, code).to(tl.int8), mask=mask)
