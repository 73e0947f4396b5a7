"""Where a GPU's programs find their work: one row per strided array of blocks, one entry per program.

Layout.strips says for each piece of a parameter (offset in storage, first block, outer, stride, blocks, run): block b is
x[:, b, :] of (outer, blocks, run), whose rows lie `stride` elements apart. Which kernel takes a strip (triton_kernels.py):

    short         contiguous blocks of at most LONGEST elements
    long          longer ones
    strided       outer > 1
    coordinates   every element a block of its own
    plain         no blocks: plain descent

A first moment in 8-bit codes has blocks of its own, in the order of elements. Then strips only tell how rates are found
("sums of" the two middle ones), and the whole tensor is one row more, of its own columns, for the kernel "codes".
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import torch
from torch import Tensor

from lowmem.optim.core.eight_bit import BLOCK
from lowmem.optim.core.rule import Layout

TILE = 2048  # elements of one program of a long block
LONGEST = 16384  # elements of a block that one program holds in registers
DOWN, ACROSS = 32, 64  # rows and columns of one program of a strided array
SETTLE = 1024  # partial sums that are added at once
EVERY = 8  # elements: runs of a multiple of it, from addresses that 16 divides, load 16 bytes at once in every dtype


@dataclasses.dataclass(frozen=True)
class Tensors:
    """One parameter's: row in the table of gradients and in that of groups, p, m and v (None: the rule has none), layout,
    whether its gradient lies at an address that 16 divides, and scales of m (None: m is in no codes)."""

    index: int
    group: int
    p: Tensor
    m: Tensor | None
    v: Tensor | None
    lay: Layout
    aligned: bool
    scale: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel: its name, its tiles (programs, 2) on the device, and the constants that its strips share."""

    kernel: str
    tiles: Tensor
    constants: dict


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that stays the same between steps, as long as no tensor but the gradients moves."""

    segments: Tensor
    launches: tuple[Launch, ...]
    partial: Tensor
    rates: Tensor
    nest: bool


@dataclasses.dataclass
class Strip:
    """One row of the segment table, see triton_kernels.py for its columns, and which kernel takes it."""

    row: list[int]
    kind: str
    constants: dict
    programs: int
    advance: int  # index of a program's tile, per program
    partials: int = 0
    rates: int = 0


KERNELS = (  # in the order in which they must run: what each kind of strip takes
    ("sums_long", "long"),
    ("sums_strided", "strided"),
    ("sums_long", "sums of long"),
    ("sums_strided", "sums of strided"),
    ("settle", "settle"),
    ("short", "short"),
    ("move_long", "long"),
    ("move_strided", "strided"),
    ("coordinates", "coordinates"),
    ("plain", "plain"),
    ("codes", "codes"),
)


def plan(tensors: list[Tensors], device: torch.device, most: int | None = None) -> Plan:
    """Tables for tensors of equal dtypes. most: launches; where it takes more, contiguous blocks all count as long ones (as
    always beside codes), and if that is not enough every strip as strided."""
    coded = tensors[0].scale is not None
    for merged in ("long", "strided") if coded else ("", "long", "strided"):
        strips = [strip for t in tensors for strip in (_coded(t, merged) if coded else _strips(t, merged))]
        chosen = _launches(strips)
        if most is None or len(chosen) <= most:
            break
    partial = rate = 0
    for index, strip in enumerate(strips):
        if strip.kind == "codes":
            strip.row[6] = index - strip.row[7]  # its strips lie before it
            continue
        strip.row[11:13] = partial, rate
        partial, rate = partial + strip.partials, rate + strip.rates
    table = torch.tensor([strip.row for strip in strips], dtype=torch.int64, device="cpu").to(device)
    scratch = [torch.empty(max(count, 1), dtype=torch.float32, device=device) for count in (partial, rate)]
    launches = tuple(Launch(kernel, _tiles(parts).to(device), constants) for kernel, constants, parts in chosen)
    return Plan(table, launches, *scratch, any(strip.row[14] != strip.row[15] for strip in strips))


def _strips(t: Tensors, merged: str) -> list[Strip]:
    base, chunk, chunk_stride = numbering(t.lay) or (0, t.lay.held, t.lay.held)
    name, found = zlib.crc32(t.lay.blocks.name.encode()), []
    for offset, first, outer, stride, blocks, run in t.lay.strips:
        starts = zip((t.p, t.m, t.v), (offset, offset, first))
        at = [0 if x is None else x.data_ptr() + x.element_size() * start for x, start in starts]
        row = [*at, t.index, offset, outer, stride, blocks, run, t.group, outer * run, 0, 0]
        row += [base, chunk, chunk_stride, offset, name]
        aligned = t.aligned and offset % EVERY == 0 and all(address % 16 == 0 for address in at[:2])
        found.append(_strip(row, aligned, t.m is None, merged, t.scale is not None))
    return found


def _coded(t: Tensors, merged: str) -> list[Strip]:
    """Strips that find rates, where elements share a v, and the tensor itself."""
    found = _strips(t, merged) if t.lay.shared else []
    for strip in found:
        strip.kind = f"sums of {strip.kind}"
    at = [t.p.data_ptr(), t.m.data_ptr(), t.v.data_ptr()]
    row = [*at, t.index, 0, t.scale.data_ptr(), 0, len(found), t.lay.held, t.group, 0, 0, 0]
    row += [0, t.lay.held, t.lay.held, 0, zlib.crc32(t.lay.blocks.name.encode())]
    aligned = t.aligned and t.lay.held % EVERY == 0 and all(address % 16 == 0 for address in at)
    rows = max(1, TILE // BLOCK)
    constants = dict(ROWS=rows, SHARED=t.lay.shared, EVEN=aligned)
    return [*found, Strip(row, "codes", constants, -(-t.lay.held // (rows * BLOCK)), rows)]


def _strip(row: list[int], aligned: bool, plain: bool, merged: str, measured: bool) -> Strip:
    """A row with the kernel that takes it, and into how many programs it is cut. measured: of its rates is asked only."""
    outer, stride, blocks, run = row[5:9]
    if outer * run == 1 and not measured:
        even = aligned and row[2] % 16 == 0 and blocks % EVERY == 0
        constants = dict(TILE=TILE, EVEN=even)
        return Strip(row, "plain" if plain else "coordinates", constants, -(-blocks // TILE), 1)
    if outer > 1 or merged == "strided":
        even = aligned and stride % EVERY == 0 and blocks * run % EVERY == 0 and not merged
        down, across = -(-outer // DOWN), -(-blocks * run // ACROSS)
        constants = dict(DOWN=DOWN, ACROSS=ACROSS, EVEN=even)
        return Strip(row, "strided", constants, down * across, 1, down * blocks * run, blocks)
    even = aligned and run % EVERY == 0
    if run <= LONGEST and not merged:
        width = max(16, 1 << (run - 1).bit_length())
        rows = max(1, 2 * TILE // width)
        return Strip(row, "short", dict(ROWS=rows, WIDTH=width, EVEN=even), -(-blocks // rows), rows)
    row[6] = -1  # which tells `settle` that partial sums of a block lie side by side
    programs = blocks * -(-run // TILE)
    return Strip(row, "long", dict(TILE=TILE, EVEN=even and not merged), programs, 1, programs, blocks)


def _launches(strips: list[Strip]) -> list[tuple[str, dict, list[tuple[int, int, int]]]]:
    """[(kernel, constants, [(row, programs, advance)])] in order."""
    kinds: dict = {}
    for index, strip in enumerate(strips):
        kinds.setdefault((strip.kind, tuple(strip.constants.items())), []).append(
            (index, strip.programs, strip.advance)
        )
    settled = [(index, strip.rates, 1) for index, strip in enumerate(strips) if strip.rates]
    if settled:
        kinds["settle", (("TILE", TILE), ("DOWN", DOWN), ("LANES", SETTLE))] = settled
    return [
        (kernel, dict(constants), parts)
        for kernel, takes in KERNELS
        for (kind, constants), parts in kinds.items()
        if kind == takes
    ]


def _tiles(parts: list[tuple[int, int, int]]) -> Tensor:
    """(programs, 2): each program's row, and the index of its tile in it."""
    rows, programs, advance = torch.tensor(parts, dtype=torch.int64, device="cpu").unbind(1)
    starts = programs.cumsum(0) - programs
    index = (
        torch.arange(int(programs.sum()), device="cpu") - starts.repeat_interleave(programs)
    ) * advance.repeat_interleave(programs)
    return torch.stack([rows.repeat_interleave(programs), index], 1).to(torch.int32)


def numbering(lay: Layout) -> tuple[int, int, int] | None:
    """How local elements are numbered in the whole parameter: element i is base + i // chunk * stride + i % chunk.

    None where flat parts do not follow each other, or the box is cut along two axes behind its first of several indices.
    """
    shape, boxes = lay.blocks.shape, lay.boxes
    bases = [sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(box.start)) for box in boxes]
    if len(boxes) != 1:
        follow = all(a + box.numel == b for a, b, box in zip(bases, bases[1:], boxes))
        return (bases[0], lay.held, lay.held) if follow and boxes else None
    lengths = boxes[0].lengths
    cut = [axis for axis in range(1, len(shape)) if lengths[axis] != shape[axis] and math.prod(lengths[:axis]) > 1]
    if not cut:
        return bases[0], lay.held, lay.held
    return None if len(cut) > 1 else (bases[0], math.prod(lengths[cut[0] :]), math.prod(shape[cut[0] :]))
