"""The pieces of a parameter: what a rule's form makes of the boxes that one process stores of it.

A whole tensor in blocks is one piece per segment; a box that ends inside a block has pieces of its own for its first and
last block. Found once per parameter and kept; the views themselves are taken anew in each step (rule.views).
"""

from __future__ import annotations

import dataclasses
import functools
import math

from lowmem.blocks import ParamBlocks
from lowmem.optim.core.sharding import Box, whole


@dataclasses.dataclass(frozen=True)
class Piece:
    """How to see part of a stored tensor as a stage wants it: elements at[0]..at[1] of storage (None: all) as `view`
    (None: as it is), then columns cut[0]..cut[1] of that as (rows, *cut[2]). ranges: (start, length) per frame axis.
    size: elements of each whole block. partial: whether other pieces hold the rest of its blocks (or of the tensor)."""

    at: tuple[int, int] | None
    view: tuple[int, ...] | None
    cut: tuple[int, int, tuple[int, int]] | None
    ranges: tuple[tuple[int, int], ...]
    size: int
    partial: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """All pieces of what this process stores of a parameter, `held` elements, and the frame they lie in; its boxes."""

    pieces: tuple[Piece, ...]
    frame: tuple[int, ...]
    held: int
    blocks: ParamBlocks
    boxes: tuple[Box, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether another process may hold the rest of a block (or of the tensor)."""
        return any(piece.partial for piece in self.pieces)

    @property
    def shared(self) -> bool:
        """Whether the elements of a block share one second moment, and none has its own."""
        return len(self.frame) == 3 and self.blocks.kind != "coordinate"

    @functools.cached_property
    def strips(self) -> tuple[tuple[int, ...], ...]:
        """(offset in storage, first block, outer, stride, blocks, run) of each piece, for the C kernel."""
        found = []
        for piece in self.pieces:
            if piece.cut is None:  # one block of everything, or every element its own
                blocks, run = (1, self.held) if piece.view == (1, 1, -1) else (self.held, 1)
                found.append((0, 0, 1, self.held, blocks, run))
                continue
            start, _, (blocks, run) = piece.cut
            first, last = piece.at or (0, self.held)
            outer = piece.view[0]
            found.append((first + start, piece.ranges[1][0], outer, (last - first) // outer, blocks, run))
        return tuple(found)


@functools.lru_cache(maxsize=1 << 16)
def layout(form: str, blocks: ParamBlocks, boxes: tuple[Box, ...] | None = None) -> Layout:
    """Pieces of a parameter in a rule's form; boxes: what is stored of it (None: all)."""
    shape, numel = blocks.shape, blocks.numel
    stored_whole = boxes is None
    boxes = whole(shape) if boxes is None else boxes
    boxes = tuple(box for box in boxes if box.numel)
    held = sum(box.numel for box in boxes)
    if not held:
        return Layout((), {"blocks": (1, blocks.count, 1), "flat": (numel,), "shaped": shape or (1,)}[form], 0, blocks)
    if form == "flat":
        return Layout((Piece(None, (-1,), None, ((0, 1),), numel, held != numel),), (numel,), held, blocks, boxes)
    if form == "shaped":
        pieces = []
        for box in boxes:
            at = None if len(boxes) == 1 else (box.offset, box.offset + box.numel)
            view = None if shape and stored_whole else box.lengths or (1,)
            ranges = tuple(zip(box.start, box.lengths)) or ((0, 1),)
            pieces.append(Piece(at, view, None, ranges, numel, box.numel != numel))
        return Layout(tuple(pieces), shape or (1,), held, blocks, boxes)
    if blocks.kind == "coordinate":  # every coordinate is complete wherever it is
        return Layout((Piece(None, (1, -1, 1), None, ((0, 1),) * 3, 1, False),), (1, numel, 1), held, blocks, boxes)
    if blocks.kind == "tensor":
        return Layout(
            (Piece(None, (1, 1, -1), None, ((0, 1),) * 3, numel, held != numel),), (1, 1, 1), held, blocks, boxes
        )
    if blocks.stack:
        pieces = [piece for box in boxes for piece in _stacked_pieces(blocks, box)]
    else:
        pieces = [piece for box in boxes for piece in _block_pieces(blocks, box, len(boxes) == 1)]
    return Layout(tuple(pieces), (1, blocks.count, 1), held, blocks, boxes)


def _stacked_pieces(blocks: ParamBlocks, box: Box) -> list[Piece]:
    """Pieces of one box of a stack: those of each entry, whose blocks follow those of the entries before."""
    entry, inside, found = blocks.entry, math.prod(box.lengths[1:]), []
    for index in range(box.lengths[0]):
        first = (box.start[0] + index) * entry.count
        part = Box(box.start[1:], box.lengths[1:], box.offset + index * inside)
        for piece in _block_pieces(entry, part, False):
            (before, (start, length), after) = piece.ranges
            found.append(dataclasses.replace(piece, ranges=(before, (first + start, length), after)))
    return found


def _block_pieces(blocks: ParamBlocks, box: Box, alone: bool) -> list[Piece]:
    """Pieces of one box: per segment, the end of a block, whole blocks, and the start of a block."""
    shape, merge = blocks.shape, blocks.merge
    along = math.prod(shape[:merge]) if blocks.axis == 0 else shape[blocks.axis + merge - 1]
    found = []
    for at, outer, start, length, inner in _strips(blocks, box):
        stored = None if alone and outer * length * inner == box.numel else (at, at + outer * length * inner)
        first = 0
        for low, high, size in blocks.segments:
            for a, b in _at_boundaries(max(low, start), min(high, start + length), low, size):
                block, count = (a - low) // size, max((b - a) // size, 1)
                cut = ((a - start) * inner, (b - start) * inner, (count, (b - a) // count * inner))
                ranges = ((0, 1), (first + block, count), (0, 1))
                full = size * (blocks.numel // along)
                partial = outer * (b - a) * inner != full * count
                found.append(Piece(stored, (outer, -1), cut, ranges, full, partial))
            first += (high - low) // size
    return found


def _strips(blocks: ParamBlocks, box: Box) -> list[tuple[int, int, int, int, int]]:
    """(offset, outer, start, length, inner): a box as parts that are contiguous along the axis that blocks cut."""
    merge, axis = blocks.merge, blocks.axis
    if merge == 1 or axis > 0:
        axis += merge - 1
        before, after = math.prod(box.lengths[:axis]), math.prod(box.lengths[axis + 1 :])
        return [(box.offset, before, box.start[axis], box.lengths[axis], after)]
    inner, offset, found = math.prod(box.lengths[merge:]), box.offset, []
    for start, length in _runs(box.start[:merge], box.lengths[:merge], blocks.shape[:merge]):
        found.append((offset, 1, start, length, inner))
        offset += length * inner
    return found


def _runs(start, lengths, shape) -> list[tuple[int, int]]:
    """(first index, length) of the contiguous runs of a rectangle in a flattened tensor."""
    row = math.prod(shape[1:])
    if tuple(lengths[1:]) == tuple(shape[1:]):
        return [(start[0] * row, lengths[0] * row)]
    inside = _runs(start[1:], lengths[1:], shape[1:])
    return [(index * row + a, n) for index in range(start[0], start[0] + lengths[0]) for a, n in inside]


def _at_boundaries(a: int, b: int, low: int, size: int) -> list[tuple[int, int]]:
    """a..b cut so that each part is inside one block, or whole blocks (blocks of `size` start at `low`)."""
    if a >= b:
        return []
    up, down = low + -(-(a - low) // size) * size, low + (b - low) // size * size
    if up > down:
        return [(a, b)]
    return [(x, y) for x, y in ((a, up), (up, down), (down, b)) if x < y]
