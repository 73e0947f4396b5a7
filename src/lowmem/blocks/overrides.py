"""Blocks that a user gives by name: which parameters an override matches, and what it makes of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable

from lowmem.blocks.param_blocks import Misfit, ParamBlocks, along, coordinates, joined, one_block


def matched(overrides: dict[str, object], names: dict[str, str], frozen: Iterable[str] = ()) -> dict[str, object]:
    """Overrides spread over the parameters they match; a pattern that matches nothing, not even what is frozen, is an error.

    names: {any name of a parameter: its first name}, since a tied parameter has several.
    """
    found, exact = {}, {}
    for pattern, how in overrides.items():
        if pattern in names:
            exact[names[pattern]] = how
            continue
        matches = [first for name, first in names.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matches and not any(fnmatch.fnmatchcase(name, pattern) for name in frozen):
            like = next(iter((*names, *frozen)), "")
            raise Misfit(f"override {pattern!r} matches no parameter; names look like {like!r}")
        found.update(dict.fromkeys(matches, how))
    return {**found, **exact}


def from_override(name: str, shape, how, axis: int = 0) -> ParamBlocks:
    """The blocks of one parameter as a user asks for them; Misfit where that does not fit its shape.

    axis: where the outputs of its layer lie, which parts and numbers of blocks divide; 'row' and 'column' name theirs.
    """
    shape = tuple(shape)
    if isinstance(how, ParamBlocks):
        if how.shape != shape:
            raise Misfit(f"{name}: override has shape {how.shape}, the parameter {shape}")
        return dataclasses.replace(how, name=name)
    if isinstance(how, tuple) and how and shape:
        return _by_parts(name, shape, how, axis)
    if how == "tensor":
        return one_block(name, shape)
    if how == "coordinate":
        return coordinates(name, shape)
    if how == "row" and shape:
        return along(name, shape, "neuron", ((0, shape[0], 1),))
    if how == "column" and len(shape) >= 2:
        return along(name, shape, "neuron", ((0, shape[1], 1),), axis=1)
    if isinstance(how, int) and not isinstance(how, bool) and how > 0 and shape:
        if axis and shape[axis] % how == 0:
            return along(name, shape, "head", ((0, shape[axis], shape[axis] // how),), axis=axis)
        merge = next((k for k in range(1, len(shape) + 1) if math.prod(shape[:k]) % how == 0), None)
        if merge:
            rows = math.prod(shape[:merge])
            return along(name, shape, "head", ((0, rows, rows // how),), merge=merge)
    raise Misfit(
        f"{name}: cannot place a tensor of shape {shape} by override {how!r}; use 'row', 'column', 'tensor', "
        "'coordinate' or a number of equal blocks that divides it"
    )


def _by_parts(name: str, shape: tuple[int, ...], parts: tuple, axis: int) -> ParamBlocks:
    """Blocks of a fused projection: ("head", n) is n heads, "row" as many rows as the heads before it, one by one."""
    heads = []
    for part in parts:
        named = (
            isinstance(part, tuple)
            and len(part) == 2
            and part[0] == "head"
            and isinstance(part[1], int)
            and part[1] > 0
        )
        if not named and (part != "row" or not heads):
            raise Misfit(f'{name}: {part!r} in an override: each part is ("head", number of heads), or "row" after one')
        heads.append((part[1] if named else heads[-1][0], named))
    total = sum(count for count, _ in heads)
    if shape[axis] % total:
        raise Misfit(f"{name}: {shape[axis]} rows do not divide into {total} heads (override {parts!r})")
    size, start, segments = shape[axis] // total, 0, []
    for count, named in heads:
        segments.append((start, start + count * size, size if named else 1))
        start += count * size
    return along(name, shape, "mixed", joined(segments), axis=axis)
