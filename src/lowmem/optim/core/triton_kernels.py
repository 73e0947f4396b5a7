"""One step of Adam (a rate per block or per coordinate) or of plain descent over many tensors, in Triton.

A program finds its work in two tables on the device: `tiles` holds (row of the segment table, index) per program, the
segment table one strided array of blocks per row (gpu_tables.py). All arithmetic is fp32, whatever is stored.

    short                       whole contiguous blocks, held in registers: every tensor is read once
    sums_long, sums_strided     sums of squares of parts of blocks that are too long, or not contiguous
    settle                      one block from its partial sums, added in a fixed order: its v and its rate
    move_long, move_strided     m and p with that rate
    coordinates                 a v per element: AdamW, and biases in Adam-mini
    plain                       p = keep * p - rate * g

v of a long block is written by one program while all of its tiles need the new rate, hence a launch between.

Constant arguments: PT, GT, MT, VT types of p, g, m, v; STOCH: round 16-bit results by random bits; NEST: elements are
numbered in chunks, as in a tensor that is sharded along an inner axis; ONE: `gradients` is the only gradient itself, not
a table of addresses; SKIPS: a factor of 0 says that the step is not to be made (overflow.py); EVEN: addresses and lengths
are such that 16 bytes may be loaded at once; EXPLICIT: conversion to bf16 must be written out, since Triton's interpreter
truncates.
"""

import torch
import triton
import triton.language as tl

from lowmem.optim.core import flat_blocks

P, M, V, G, G_OFFSET = (tl.constexpr(i) for i in range(5))  # columns of the segment table
OUTER, STRIDE, BLOCKS, RUN, GROUP, SIZE = (tl.constexpr(i) for i in range(5, 11))
PARTIAL, RATE, NUMBER, CHUNK, CHUNK_STRIDE, OFFSET, NAME = (tl.constexpr(i) for i in range(11, 18))
COLUMNS = tl.constexpr(18)
KEEP, STEP, BETA2, GAIN1, GAIN2, EPS, ROOT, FACTOR = (tl.constexpr(i) for i in range(8))  # of a group's numbers
NUMBERS = tl.constexpr(8)
LARGEST = tl.constexpr(flat_blocks.LARGEST[torch.float32] ** 2)  # of a sum of squares in a block
BOUND = tl.constexpr(flat_blocks.LARGEST[torch.float32])  # of a finite gradient in m
HIGHEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def gradient_of(gradients, row, GT: tl.constexpr, ONE: tl.constexpr):
    if ONE:
        start = gradients
    else:
        start = tl.load(gradients + tl.load(row + G)).to(tl.pointer_type(GT))
    return start + tl.load(row + G_OFFSET)


@triton.jit
def mixed(x):
    """A bijection of 32 bits in which every bit depends on every other (Wellons' lowbias32): 7 instructions an element,
    where Philox takes 48 and would cost as much as the memory."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def random_bits(row, at, seed, STOCH: tl.constexpr, NEST: tl.constexpr):
    """32 bits for each element of a segment from the seed, the parameter's name and the element's number in the whole
    parameter, so that they do not depend on how it is cut. at: int64 offsets from the segment's start."""
    if STOCH:
        place = at + tl.load(row + OFFSET)
        if NEST:
            short_place, chunk = place.to(tl.int32), tl.load(row + CHUNK).to(tl.int32)
            place = (short_place // chunk).to(tl.int64) * tl.load(row + CHUNK_STRIDE) + (short_place % chunk)
        number = place + tl.load(row + NUMBER)
        key = mixed(seed.to(tl.uint32) ^ tl.load(row + NAME).to(tl.uint32))
        low, high = (number & 0xFFFFFFFF).to(tl.uint32), (number >> 32).to(tl.uint32)
        bits = mixed((low + high * 0x1E3779B1) ^ key)
    else:
        bits = (at * 0).to(tl.uint32)
    return bits


@triton.jit
def stored(x, noise, KIND: tl.constexpr, STOCH: tl.constexpr, EXPLICIT: tl.constexpr):
    """fp32 x in its storage type. noise: 16 random bits each, which decide between the two neighbours."""
    if KIND == tl.bfloat16 and (STOCH or EXPLICIT):  # noqa: SIM300 (Triton compares its constants in this order)
        bits = x.to(tl.uint32, bitcast=True)
        if STOCH:
            up = bits + noise
        else:
            up = bits + 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where((bits & 0x7F800000) != 0x7F800000, up & 0xFFFF0000, bits)
        x = bits.to(tl.float32, bitcast=True)
    if KIND == tl.float16 and STOCH:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        normal = ((bits + (noise & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        units = tl.abs(x) * 16777216.0  # subnormal fp16 numbers are multiples of 2^-24
        below = tl.floor(units)
        units = below + tl.where(noise.to(tl.float32) * (1.0 / 65536.0) < units - below, 1.0, 0.0)
        small = tl.where(x < 0, -units, units) * (1.0 / 16777216.0)
        finite = (bits & 0x7F800000) != 0x7F800000
        x = tl.where(finite, tl.where(tl.abs(x) < 6.103515625e-05, small, normal), x)
    return x.to(KIND)


@triton.jit
def moving(count, numbers, SKIPS: tl.constexpr):
    """How many of so many elements (or rows) there are to move: none where the step is not to be made (overflow.py)."""
    if SKIPS:
        count = tl.where(tl.load(numbers + FACTOR) != 0, count, 0)
    return count


@triton.jit
def moved(w, m, x, rate, numbers):
    """(new p, new m) of one Adam step with this rate."""
    beyond = (tl.abs(x) > BOUND) & (tl.abs(x) <= HIGHEST)
    x = tl.where(beyond, tl.where(x < 0, -BOUND, BOUND), x)
    m = m + tl.load(numbers + GAIN1) * (x - m)
    return w * tl.load(numbers + KEEP) - rate * m, m


@triton.jit
def bounded(square):
    return tl.where(square > LARGEST, LARGEST, square)  # NaN stays


@triton.jit
def second_moment(v, statistic, numbers):
    """(new v, the rate lr / (sqrt(v) + eps) with both bias corrections)."""
    v = v * tl.load(numbers + BETA2) + tl.load(numbers + GAIN2) * statistic
    return v, tl.load(numbers + STEP) / (tl.sqrt(v) * tl.load(numbers + ROOT) + tl.load(numbers + EPS))


@triton.jit(do_not_specialize=["seed"])
def short(segments, tiles, gradients, groups, seed, PT: tl.constexpr, GT: tl.constexpr, MT: tl.constexpr,
          STOCH: tl.constexpr, NEST: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr, SKIPS: tl.constexpr,
          ROWS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    first = tl.load(tiles + 2 * t + 1)
    blocks, run = tl.load(row + BLOCKS), tl.load(row + RUN)
    start = first.to(tl.int64) * run
    p = tl.load(row + P).to(tl.pointer_type(PT)) + start
    m = tl.load(row + M).to(tl.pointer_type(MT)) + start
    g = gradient_of(gradients, row, GT, ONE) + start
    v = tl.load(row + V).to(tl.pointer_type(tl.float32))
    lanes = run.to(tl.int32)
    if EVEN:  # on pointers: a hint on the address as a number is lost when it becomes one
        p, m, g, lanes = tl.multiple_of(p, 16), tl.multiple_of(m, 16), tl.multiple_of(g, 16), tl.multiple_of(lanes, 8)
    b, i = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = tl.arange(0, ROWS)[:, None] * lanes + i[None, :]
    numbers = groups + tl.load(row + GROUP) * NUMBERS
    here = b < moving(blocks, numbers, SKIPS)
    mask = here[:, None] & (i < lanes)[None, :]
    x = tl.load(g + at, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    old_m = tl.load(m + at, mask=mask, other=0).to(tl.float32)
    w = tl.load(p + at, mask=mask, other=0).to(tl.float32)
    statistic = bounded(tl.sum(x * x, axis=1)) / tl.load(row + SIZE).to(tl.float32)
    new_v, rate = second_moment(tl.load(v + b, mask=here, other=0), statistic, numbers)
    tl.store(v + b, new_v, mask=here)
    w, new_m = moved(w, old_m, x, rate[:, None], numbers)
    noise = random_bits(row, start + at.to(tl.int64), seed, STOCH, NEST)
    tl.store(p + at, stored(w, noise & 0xFFFF, PT, STOCH, EXPLICIT), mask=mask)
    tl.store(m + at, stored(new_m, noise >> 16, MT, STOCH, EXPLICIT), mask=mask)


@triton.jit
def sums_long(segments, tiles, gradients, groups, partial, GT: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr,
              EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    k, run = tl.load(tiles + 2 * t + 1).to(tl.int64), tl.load(row + RUN)
    per_block = (run + TILE - 1) // TILE
    block, part = k // per_block, k % per_block
    g = gradient_of(gradients, row, GT, ONE) + block * run + part * TILE
    left = tl.minimum(run - part * TILE, TILE).to(tl.int32)
    if EVEN:
        g, left = tl.multiple_of(g, 16), tl.multiple_of(left, 8)
    i = tl.arange(0, TILE)
    x = tl.load(g + i, mask=i < left, other=0).to(tl.float32) * tl.load(
        groups + tl.load(row + GROUP) * NUMBERS + FACTOR
    )
    tl.store(partial + tl.load(row + PARTIAL) + k, tl.sum(x * x, axis=0))


@triton.jit
def sums_strided(segments, tiles, gradients, groups, partial, GT: tl.constexpr, ONE: tl.constexpr, DOWN: tl.constexpr,
                 ACROSS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """Sums down DOWN rows of (outer, blocks * run), one for each of ACROSS columns."""
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    k = tl.load(tiles + 2 * t + 1).to(tl.int64)
    outer, stride, width = tl.load(row + OUTER), tl.load(row + STRIDE), tl.load(row + BLOCKS) * tl.load(row + RUN)
    g = gradient_of(gradients, row, GT, ONE)
    if EVEN:
        g, stride, width = tl.multiple_of(g, 16), tl.multiple_of(stride, 8), tl.multiple_of(width, 8)
    wide = (width + ACROSS - 1) // ACROSS
    o, c = (k // wide) * DOWN + tl.arange(0, DOWN), (k % wide) * ACROSS + tl.arange(0, ACROSS)
    mask = (o < outer)[:, None] & (c < width)[None, :]
    x = tl.load(g + o[:, None] * stride + c[None, :], mask=mask, other=0).to(tl.float32)
    x = x * tl.load(groups + tl.load(row + GROUP) * NUMBERS + FACTOR)
    tl.store(partial + tl.load(row + PARTIAL) + (k // wide) * width + c, tl.sum(x * x, axis=0), mask=c < width)


@triton.jit
def settle(segments, tiles, groups, partial, rates, SKIPS: tl.constexpr, TILE: tl.constexpr, DOWN: tl.constexpr,
           LANES: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    block = tl.load(tiles + 2 * t + 1).to(tl.int64)
    outer, blocks, run = tl.load(row + OUTER), tl.load(row + BLOCKS), tl.load(row + RUN)
    long = tl.load(row + STRIDE) < 0  # contiguous blocks have no stride
    per_block = (run + TILE - 1) // TILE
    count = tl.where(long, per_block, ((outer + DOWN - 1) // DOWN) * run)
    start = partial + tl.load(row + PARTIAL) + block * tl.where(long, per_block, run)
    width, skip = tl.where(long, per_block, run), tl.where(long, per_block, blocks * run)
    total, at = tl.zeros((LANES,), tl.float32), tl.arange(0, LANES).to(tl.int64)
    done = count * 0
    while done < count:
        i = done + at
        total += tl.load(start + (i // width) * skip + i % width, mask=i < count, other=0)
        done += LANES
    numbers = groups + tl.load(row + GROUP) * NUMBERS
    v = tl.load(row + V).to(tl.pointer_type(tl.float32)) + block
    mean = bounded(tl.sum(total, axis=0)) / tl.load(row + SIZE).to(tl.float32)
    old_v = tl.load(v)
    new_v, rate = second_moment(old_v, mean, numbers)
    if SKIPS:
        new_v = tl.where(tl.load(numbers + FACTOR) != 0, new_v, old_v)
    tl.store(v, new_v)
    tl.store(rates + tl.load(row + RATE) + block, rate)


@triton.jit
def update(p, m, x, row, at, start, mask, rate, numbers, seed, PT: tl.constexpr, MT: tl.constexpr,
           STOCH: tl.constexpr, NEST: tl.constexpr, EXPLICIT: tl.constexpr):  # fmt: skip
    """m and p of one tile with gradient x. at: offsets from the pointers, which lie `start` elements into the segment."""
    old_m = tl.load(m + at, mask=mask, other=0).to(tl.float32)
    w, new_m = moved(tl.load(p + at, mask=mask, other=0).to(tl.float32), old_m, x, rate, numbers)
    noise = random_bits(row, start + at.to(tl.int64), seed, STOCH, NEST)
    tl.store(p + at, stored(w, noise & 0xFFFF, PT, STOCH, EXPLICIT), mask=mask)
    tl.store(m + at, stored(new_m, noise >> 16, MT, STOCH, EXPLICIT), mask=mask)


@triton.jit(do_not_specialize=["seed"])
def move_long(segments, tiles, gradients, groups, rates, seed, PT: tl.constexpr, GT: tl.constexpr, MT: tl.constexpr,
              STOCH: tl.constexpr, NEST: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr, SKIPS: tl.constexpr,
              TILE: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    k, run = tl.load(tiles + 2 * t + 1).to(tl.int64), tl.load(row + RUN)
    per_block = (run + TILE - 1) // TILE
    block, part = k // per_block, k % per_block
    start = block * run + part * TILE
    p = tl.load(row + P).to(tl.pointer_type(PT)) + start
    m = tl.load(row + M).to(tl.pointer_type(MT)) + start
    g = gradient_of(gradients, row, GT, ONE) + start
    left = tl.minimum(run - part * TILE, TILE).to(tl.int32)
    if EVEN:
        p, m, g, left = tl.multiple_of(p, 16), tl.multiple_of(m, 16), tl.multiple_of(g, 16), tl.multiple_of(left, 8)
    i = tl.arange(0, TILE)
    rate, numbers = tl.load(rates + tl.load(row + RATE) + block), groups + tl.load(row + GROUP) * NUMBERS
    mask = i < moving(left, numbers, SKIPS)
    x = tl.load(g + i, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    update(p, m, x, row, i, start, mask, rate, numbers, seed, PT, MT, STOCH, NEST, EXPLICIT)


@triton.jit(do_not_specialize=["seed"])
def move_strided(segments, tiles, gradients, groups, rates, seed, PT: tl.constexpr, GT: tl.constexpr, MT: tl.constexpr,
                 STOCH: tl.constexpr, NEST: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr, SKIPS: tl.constexpr,
                 DOWN: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    k = tl.load(tiles + 2 * t + 1).to(tl.int64)
    outer, stride, run = tl.load(row + OUTER), tl.load(row + STRIDE), tl.load(row + RUN)
    width = tl.load(row + BLOCKS) * run
    p, m = tl.load(row + P).to(tl.pointer_type(PT)), tl.load(row + M).to(tl.pointer_type(MT))
    g = gradient_of(gradients, row, GT, ONE)
    if EVEN:
        p, m, g = tl.multiple_of(p, 16), tl.multiple_of(m, 16), tl.multiple_of(g, 16)
        stride, width = tl.multiple_of(stride, 8), tl.multiple_of(width, 8)
    wide = (width + ACROSS - 1) // ACROSS
    o, c = (k // wide) * DOWN + tl.arange(0, DOWN), (k % wide) * ACROSS + tl.arange(0, ACROSS)
    at, numbers = o[:, None] * stride + c[None, :], groups + tl.load(row + GROUP) * NUMBERS
    mask = (o < moving(outer, numbers, SKIPS))[:, None] & (c < width)[None, :]
    rate = tl.load(rates + tl.load(row + RATE) + c // run, mask=c < width, other=0)
    x = tl.load(g + at, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    update(p, m, x, row, at, k * 0, mask, rate[None, :], numbers, seed, PT, MT, STOCH, NEST, EXPLICIT)


@triton.jit(do_not_specialize=["seed"])
def coordinates(segments, tiles, gradients, groups, seed, PT: tl.constexpr, GT: tl.constexpr, MT: tl.constexpr,
                VT: tl.constexpr, STOCH: tl.constexpr, NEST: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr,
                SKIPS: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    start = tl.load(tiles + 2 * t + 1).to(tl.int64) * TILE
    left = tl.minimum(tl.load(row + BLOCKS) - start, TILE).to(tl.int32)
    p = tl.load(row + P).to(tl.pointer_type(PT)) + start
    m = tl.load(row + M).to(tl.pointer_type(MT)) + start
    v = tl.load(row + V).to(tl.pointer_type(VT)) + start
    g = gradient_of(gradients, row, GT, ONE) + start
    if EVEN:
        p, m, g, left = tl.multiple_of(p, 16), tl.multiple_of(m, 16), tl.multiple_of(g, 16), tl.multiple_of(left, 8)
        v = tl.multiple_of(v, 16)
    i, numbers = tl.arange(0, TILE), groups + tl.load(row + GROUP) * NUMBERS
    mask = i < moving(left, numbers, SKIPS)
    x = tl.load(g + i, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    new_v, rate = second_moment(tl.load(v + i, mask=mask, other=0).to(tl.float32), bounded(x * x), numbers)
    noise = mixed(random_bits(row, start + i.to(tl.int64), seed, STOCH, NEST) + 0x68E31DA4)  # not those of p and m
    tl.store(v + i, stored(new_v, noise & 0xFFFF, VT, STOCH, EXPLICIT), mask=mask)
    update(p, m, x, row, i, start, mask, rate, numbers, seed, PT, MT, STOCH, NEST, EXPLICIT)


@triton.jit(do_not_specialize=["seed"])
def plain(segments, tiles, gradients, groups, seed, PT: tl.constexpr, GT: tl.constexpr, STOCH: tl.constexpr,
          NEST: tl.constexpr, ONE: tl.constexpr, EXPLICIT: tl.constexpr, SKIPS: tl.constexpr, TILE: tl.constexpr,
          EVEN: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    row = segments + tl.load(tiles + 2 * t).to(tl.int64) * COLUMNS
    start = tl.load(tiles + 2 * t + 1).to(tl.int64) * TILE
    left = tl.minimum(tl.load(row + BLOCKS) - start, TILE).to(tl.int32)
    p = tl.load(row + P).to(tl.pointer_type(PT)) + start
    g = gradient_of(gradients, row, GT, ONE) + start
    if EVEN:
        p, g, left = tl.multiple_of(p, 16), tl.multiple_of(g, 16), tl.multiple_of(left, 8)
    i, numbers = tl.arange(0, TILE), groups + tl.load(row + GROUP) * NUMBERS
    mask = i < moving(left, numbers, SKIPS)
    x = tl.load(g + i, mask=mask, other=0).to(tl.float32) * tl.load(numbers + FACTOR)
    w = tl.load(p + i, mask=mask, other=0).to(tl.float32) * tl.load(numbers + KEEP) - tl.load(numbers + STEP) * x
    noise = random_bits(row, start + i.to(tl.int64), seed, STOCH, NEST)
    tl.store(p + i, stored(w, noise & 0xFFFF, PT, STOCH, EXPLICIT), mask=mask)


@triton.jit
def probe(x):
    """One number, written to see whether kernels can be built and started here at all."""
    tl.store(x, 1.0)
