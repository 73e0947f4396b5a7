"""From a model to its Hessian blocks: the Adam-mini partition (arXiv 2406.16793, Algorithms 2 and 3).

The paper's rule for Transformers: one second-moment scalar per token row of embedding and output layer, per head of
query and key, per output neuron of value, attention projection and MLP, and per tensor for everything else. For other
models: one per tensor. Which parameter plays which role is read off the modules (see roles.py), never off substrings
of names.

A block layout is small: along one axis of the tensor, consecutive slices are grouped into blocks.

    Linear (out, in), per output neuron     axis 0, segments ((0, out, 1),)
    query (heads * head_dim, in)            axis 0, segments ((0, out, head_dim),)
    fused qkv (3 * out, in)                 axis 0, segments ((0, out, d), (out, 2 out, d), (2 out, 3 out, 1))
    transposed Conv1D (in, out)             axis 1, segments ((0, out, 1),)
    experts (experts, in, out)              stack 1, axis 1, segments ((0, out, 1),)
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
import warnings
from collections.abc import Iterable, Iterator

from torch import nn

KINDS = ("token", "head", "neuron", "tensor", "coordinate", "mixed")

# The switches of the three partitions that official versions and the paper differ in.
_TENSOR = dict.fromkeys(("neuron", "head", "value", "embedding", "output", "biases"), "tensor")
_ROWS = dict.fromkeys(("neuron", "value", "embedding", "output"), "row")
SCHEMES = {
    "v1.1": {**_ROWS, "head": "head", "biases": "coordinate"},
    "v1.0": {**_TENSOR, "head": "head", "embedding": "coordinate", "output": "coordinate"},
    "tensor": _TENSOR,
}


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
                f"check the number of heads, or pass overrides={{{name!r}: 'row'}}"
            )
        count += (stop - start) // size
        position = stop
    if position != merged[axis]:
        raise Misfit(
            f"{name}: blocks cover {position} of {merged[axis]} slices along axis {axis} (shape {shape}); "
            f"check head size and number of key heads, or pass overrides={{{name!r}: 'row'}}"
        )
    count *= math.prod(shape[:stack])
    if count == 1:
        return one_block(name, shape)
    return ParamBlocks(name, shape, kind, count, axis, tuple(tuple(s) for s in segments), merge, stack)


class Misfit(ValueError):
    """A parameter that fits no rule; the message names it and the fix."""


class Partition:
    """The blocks of every trainable parameter of a model: iterate for ParamBlocks, index by name, print for a table."""

    def __init__(self, entries: dict[str, tuple[ParamBlocks, nn.Parameter]], settings: dict, model: nn.Module | None):
        self._entries = entries
        self.settings = settings
        self.model = model

    def __iter__(self) -> Iterator[ParamBlocks]:
        return (blocks for blocks, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> ParamBlocks:
        return self._entries[name][0]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of every trainable parameter, each once, in registration order."""
        return ((name, parameter) for name, (_, parameter) in self._entries.items())

    @property
    def scalars(self) -> int:
        """Number of second-moment scalars, the sum of all counts."""
        return sum(blocks.count for blocks in self)

    def override(self, overrides: dict[str, object]) -> Partition:
        """A new partition with some parameters placed by hand; see partition(overrides=...)."""
        entries = dict(self._entries)
        for name, how in _matched(overrides, {name: name for name in entries}).items():
            entries[name] = (_by_hand(name, entries[name][1].shape, how), entries[name][1])
        return Partition(entries, {**self.settings, "overrides": dict(overrides)}, self.model)

    def __str__(self) -> str:
        rows = [("parameter", "shape", "blocks", "scalars")]
        groups: dict = {}
        for blocks in self:  # layers that differ only in their number share a row
            pattern = ".".join("*" if part.isdigit() else part for part in blocks.name.split("."))
            groups.setdefault((pattern, blocks.shape, blocks.kind, blocks.count), []).append(blocks)
        for (pattern, shape, kind, count), members in groups.items():
            times = f" x {len(members)}" if len(members) > 1 else ""
            shape_text = " x ".join(map(str, shape)) or "scalar"
            rows.append((pattern + times, shape_text, f"{count:,} {kind}", f"{count * len(members):,}"))
        parameters = sum(blocks.numel for blocks in self)
        share = 100 * self.scalars / max(parameters, 1)
        rows.append(
            ("total", f"{parameters:,} parameters", f"{len(self)} tensors", f"{self.scalars:,} ({share:.3g} %)")
        )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows
        )


def partition(
    model: nn.Module,
    scheme: str = "v1.1",
    value: str | None = None,
    embedding: str | None = None,
    output: str | None = None,
    biases: str | None = None,
    neurons: bool | None = None,
    overrides: dict[str, object] | None = None,
    also: Iterable[nn.Parameter] = (),
) -> Partition:
    """Find the Hessian blocks of a model's trainable parameters.

    scheme: "v1.1" (the paper's camera-ready), "v1.0" (embedding and output per coordinate, query and key by head, the
    rest one block per tensor), or "tensor" (torch's layout: one block per tensor, the unstable default of Figure 7 i).
    value, embedding, output: "row", "tensor" or "coordinate"; biases: "coordinate" or "tensor"; None takes the scheme's.
    neurons: None cuts linear layers by output neuron when the model has attention, and nothing in other models (the
    paper's Algorithm 3). True cuts linear, convolution and recurrent layers by output neuron in any model; False leaves
    linear layers and attention one block per tensor.
    overrides: {parameter name or pattern: "row" | "column" | "tensor" | "coordinate" | number of equal contiguous
    blocks}, for what the modules do not tell. A name beats a pattern, and a later pattern an earlier one.
    also: parameters that are frozen now and will train later.

    In a projection that interleaves heads (GPT-NeoX), value="tensor" still makes one value block per head.

    Raises Misfit, naming parameter and fix, for attention whose heads are not known or do not divide, and for a bare
    parameter of a Transformer that no module explains.
    """
    from lowmem.layers import is_lazy
    from lowmem.roles import find_roles, joined_layers

    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; choose from {', '.join(SCHEMES)}")
    switches = dict(SCHEMES[scheme])
    chosen = {"value": value, "embedding": embedding, "output": output, "biases": biases}
    for key, setting in chosen.items():
        allowed = ("coordinate", "tensor") if key == "biases" else ("row", "tensor", "coordinate")
        if setting is not None and setting not in allowed:
            raise ValueError(f"{key}={setting!r}: choose from {', '.join(allowed)}")
        switches[key] = setting or switches[key]
    thawing = set(also)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad or p in thawing}
    named = {name: p for name, p in named.items() if not is_lazy(p)}
    first = {id(p): name for name, p in named.items()}
    aliases = {name: first.get(id(p)) for name, p in model.named_parameters(remove_duplicate=False)}
    by_hand = _matched(overrides or {}, {name: alias for name, alias in aliases.items() if alias})
    roles, is_transformer = find_roles(model)
    switches["filter"] = "row" if neurons else "tensor"
    if scheme != "tensor":
        if neurons is False or (neurons is None and not is_transformer):
            switches.update(neuron="tensor", head="tensor", value="tensor")
        if neurons is None and not is_transformer:
            switches.update({key: chosen[key] or "tensor" for key in ("embedding", "output")})
    asked = {name: p for name, p in named.items() if name not in by_hand}
    if scheme != "tensor" and neurons is not False:
        _refuse_unknown({name: roles[id(p)] for name, p in asked.items()})
    entries = {}
    for name, parameter in named.items():
        if name in by_hand:
            blocks = _by_hand(name, parameter.shape, by_hand[name])
        else:
            blocks = _by_role(name, tuple(parameter.shape), roles[id(parameter)], switches)
        entries[name] = (blocks, parameter)
    settings = {"scheme": scheme, **{k: switches[k] for k in ("value", "embedding", "output", "biases")}}
    unseen = not is_transformer and neurons is None and scheme != "tensor" and _reads_tokens(model)
    split = joined_layers(model, roles) if is_transformer and neurons is not False and scheme != "tensor" else {}
    _warn_of_guesses(model, sum(blocks.count for blocks, _ in entries.values()) if unseen else None, split, by_hand)
    settings |= {"neurons": neurons, **({"overrides": dict(overrides)} if overrides else {})}
    return Partition(entries, settings, model)


def _reads_tokens(model: nn.Module) -> bool:
    """Whether a model has token tables, and norms or several layers, but no recurrent one: it may be a Transformer of
    unusual words."""
    from lowmem.layers import NORMS, is_embedding, is_linear, words

    kinds = list(model.modules())
    norm = any(isinstance(m, NORMS) or "norm" in " ".join(words(type(m).__name__)) for m in kinds)
    several = sum(map(is_linear, kinds)) > 2
    return any(map(is_embedding, kinds)) and (norm or several) and not any(isinstance(m, nn.RNNBase) for m in kinds)


def _warn_of_guesses(model: nn.Module, scalars: int | None, split: dict[str, str], by_hand: dict) -> None:
    """Say where nothing was recognised, which is silent otherwise: one block per tensor, or per neuron."""
    if scalars is not None:
        warnings.warn(
            f"no attention was recognised in {type(model).__name__}, so each of its tensors is one block, as the paper does "
            f"outside Transformers ({scalars:,} second moments in all); if it is one, pass neurons=True and "
            "overrides={name of queries or keys: number of heads}",
            stacklevel=3,
        )
    for name, kind in split.items():
        if name not in by_hand:
            warnings.warn(
                f"{name}: one layer of {kind} seems to hold several projections of an attention that was not recognised, "
                f"and is cut by output neuron; pass overrides={{{name!r}: ...}} if queries and keys are among them",
                stacklevel=3,
            )


def _refuse_unknown(roles: dict) -> None:
    """Raise Misfit for parameters of unknown role: the first one's reason, and overrides that place them all."""
    unknown = {name: role for name, role in roles.items() if role.name == "unknown"}
    if not unknown:
        return
    name, role = next(iter(unknown.items()))
    patterns = [re.sub(r"(?<=\.)\d+(?=\.)", "*", other) for other in unknown]
    known = {other for other in roles if other not in unknown}
    loose = [p for p in patterns if any(fnmatch.fnmatchcase(other, p) for other in known)]
    keys = unknown if loose else dict.fromkeys(patterns)  # patterns only where they catch nothing else
    example = ", ".join(f"{key!r}: 'row'" for key in keys)
    raise Misfit(
        f"{name}: {role.why}; pass overrides={{{example}}}, with 'column', 'tensor', 'coordinate' or a number of equal "
        "blocks (for queries and keys: of heads) in place of 'row' where that is right, or neurons=False if this model "
        "is no Transformer"
    )


def _by_role(name: str, shape: tuple[int, ...], role, switches: dict) -> ParamBlocks:
    """Blocks from a role (see roles.py) and the switches of the scheme."""
    if role.name == "bias":
        return coordinates(name, shape) if switches["biases"] == "coordinate" else one_block(name, shape)
    if role.name in ("other", "unknown") or not shape:
        return one_block(name, shape)
    if role.name == "fused":  # several projections in one tensor: each part by its own rule
        if switches["value"] == switches["head"] == switches["neuron"] == "tensor":
            return one_block(name, shape)
        segments, start = [], 0
        for part, length, head_dim in role.parts:
            setting = switches[part if part in ("value", "neuron") else "head"]
            if setting == "coordinate":
                raise Misfit(f"{name}: value='coordinate' cannot hold inside a fused projection; use 'row' or 'tensor'")
            size = {"row": 1, "head": head_dim, "tensor": length}[setting]
            segments.append((start, start + length, size))
            start += length
        return along(name, shape, "mixed", _joined(segments), role.axis)
    setting = switches["neuron" if role.name == "position" else role.name]
    if role.name == "position":  # one block per position, also where the paper's code makes one block of the table
        setting = "tensor" if switches["embedding"] == "tensor" else "row"
    if setting == "coordinate":
        return coordinates(name, shape)
    if setting == "tensor":
        return one_block(name, shape)
    length = shape[role.stack + role.axis] if role.merge == 1 else math.prod(shape[: role.merge])
    if setting == "head":
        return along(name, shape, "head", ((0, length, role.head_dim),), role.axis)
    kind = "token" if role.name in ("embedding", "output", "position") else "neuron"
    return along(name, shape, kind, ((0, length, 1),), role.axis, role.merge, role.stack)


def _joined(segments: list[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Neighbouring segments of equal block size become one."""
    joined = [segments[0]]
    for start, stop, size in segments[1:]:
        before = joined[-1]
        if before[2] == size and (before[1] - before[0]) % size == 0:
            joined[-1] = (before[0], stop, size)
        else:
            joined.append((start, stop, size))
    return tuple(joined)


def _matched(overrides: dict[str, object], names: dict[str, str]) -> dict[str, object]:
    """Overrides spread over the parameters they match; a pattern that matches nothing is an error.

    names: {any name of a parameter: its first name}, since a tied parameter has several.
    """
    found, exact = {}, {}
    for pattern, how in overrides.items():
        if pattern in names:
            exact[names[pattern]] = how
            continue
        matches = [first for name, first in names.items() if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise Misfit(
                f"override {pattern!r} matches no trainable parameter; names look like {next(iter(names), '')!r}"
            )
        found.update(dict.fromkeys(matches, how))
    return {**found, **exact}


def _by_hand(name: str, shape, how) -> ParamBlocks:
    shape = tuple(shape)
    if isinstance(how, ParamBlocks):
        if how.shape != shape:
            raise Misfit(f"{name}: override has shape {how.shape}, the parameter {shape}")
        return dataclasses.replace(how, name=name)
    if how == "tensor":
        return one_block(name, shape)
    if how == "coordinate":
        return coordinates(name, shape)
    if how == "row" and shape:
        return along(name, shape, "neuron", ((0, shape[0], 1),))
    if how == "column" and len(shape) >= 2:
        return along(name, shape, "neuron", ((0, shape[1], 1),), axis=1)
    if isinstance(how, int) and not isinstance(how, bool) and how > 0 and shape:
        merge = next((k for k in range(1, len(shape) + 1) if math.prod(shape[:k]) % how == 0), None)
        if merge:
            rows = math.prod(shape[:merge])
            return along(name, shape, "head", ((0, rows, rows // how),), merge=merge)
    raise Misfit(
        f"{name}: cannot place a tensor of shape {shape} by override {how!r}; use 'row', 'column', 'tensor', "
        "'coordinate' or a number of equal blocks that divides it"
    )
