"""How one parameter is cut into blocks that share a second moment.

A block layout is small: along one axis of the tensor, consecutive slices are grouped into blocks.

    Linear (out, in), per output neuron     axis 0, segments ((0, out, 1),)
    query (heads * head_dim, in)            axis 0, segments ((0, out, head_dim),)
    fused qkv (3 * out, in)                 axis 0, segments ((0, out, d), (out, 2 out, d), (2 out, 3 out, 1))
    transposed Conv1D (in, out)             axis 1, segments ((0, out, 1),)
    experts (experts, in, out)              stack 1, axis 1, segments ((0, out, 1),)
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class ParamBlocks:
    """How one parameter is cut into blocks that share a second moment.

    name: the parameter's first registered name. shape: its full shape.
    kind: token, head, neuron, tensor, coordinate, or mixed (a fused projection). count: number of blocks, which is the
    number of second-moment scalars. axis: the axis whose slices are grouped, counted after the first `merge` axes are
    merged into one. segments: (start, stop, size) along that axis; slices start..stop form blocks of `size` slices.
    Empty segments mean one block per coordinate. stack: 1 where each entry along the first axis has all these blocks for
    itself; the other fields then speak of one entry, without that axis.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    count: int
    axis: int = 0
    segments: tuple[tuple[int, int, int], ...] = ()
    merge: int = 1
    stack: int = 0

    @property
    def signature(self) -> str:
        """Short text that two equal partitions share; state dictionaries carry it."""
        pieces = ",".join(f"{start}:{stop}:{size}" for start, stop, size in self.segments)
        stacked = " stacked" if self.stack else ""
        return f"{self.kind} x {self.count} @ {self.axis}/{self.merge}{stacked} [{pieces}]"

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def entry(self) -> ParamBlocks:
        """The blocks of one entry of a stack."""
        return dataclasses.replace(self, shape=self.shape[1:], count=self.count // self.shape[0], stack=0)


def one_block(name: str, shape: tuple[int, ...]) -> ParamBlocks:
    """The whole tensor as one block: the default of torch's parameter layout."""
    shape = tuple(shape)
    rows = shape[0] if shape else 1
    return ParamBlocks(name, shape, "tensor", 1, 0, ((0, rows, rows),))


def coordinates(name: str, shape: tuple[int, ...]) -> ParamBlocks:
    """Every coordinate its own block: plain Adam."""
    return ParamBlocks(name, tuple(shape), "coordinate", math.prod(shape))


def along(name: str, shape, kind: str, segments, axis: int = 0, merge: int = 1, stack: int = 0) -> ParamBlocks:
    """Blocks of consecutive slices along an axis; Misfit names the parameter when sizes do not divide."""
    shape = tuple(shape)
    entry = shape[stack:]
    merged = (math.prod(entry[:merge]), *entry[merge:])
    count, position = 0, 0
    for start, stop, size in segments:
        if start != position or size < 1 or (stop - start) % size:
            raise Misfit(
                f"{name}: {stop - start} slices along axis {axis} cannot be cut into blocks of {size} (shape {shape}); "
                f"check the number of heads, or pass overrides={{{name!r}: {instead(kind)}}}"
            )
        count += (stop - start) // size
        position = stop
    if position != merged[axis]:
        raise Misfit(
            f"{name}: blocks cover {position} of {merged[axis]} slices along axis {axis} (shape {shape}); "
            f"check head size and number of key heads, or pass overrides={{{name!r}: {instead(kind)}}}"
        )
    count *= math.prod(shape[:stack])
    if count == 1:
        return one_block(name, shape)
    return ParamBlocks(name, shape, kind, count, axis, tuple(tuple(s) for s in segments), merge, stack)


def instead(kind: str) -> str:
    """An override in place of blocks of this kind that did not fit: never rows for queries and keys."""
    return "'tensor'" if kind in ("head", "mixed") else "'row'"


class Misfit(ValueError):
    """A parameter that fits no rule; the message names it and the fix."""


def joined(segments: list[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Neighbouring segments of equal block size become one."""
    joined = [segments[0]]
    for start, stop, size in segments[1:]:
        before = joined[-1]
        if before[2] == size and (before[1] - before[0]) % size == 0:
            joined[-1] = (before[0], stop, size)
        else:
            joined.append((start, stop, size))
    return tuple(joined)
