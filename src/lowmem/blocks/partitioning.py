"""From a model to its Hessian blocks: the Adam-mini partition (arXiv 2406.16793, Algorithms 2 and 3).

The paper's rule for Transformers: one second-moment scalar per token row of embedding and output layer, per head of
query and key, per output neuron of value, attention projection and MLP, and per tensor for everything else. For other
models: one per tensor. Which parameter plays which role is read off the modules (see roles.py), never off substrings
of names.
"""

from __future__ import annotations

import fnmatch
import math
import re
import warnings
from collections.abc import Iterable, Iterator

from torch import nn

from lowmem.blocks.overrides import from_override, matched
from lowmem.blocks.param_blocks import Misfit, ParamBlocks, along, coordinates, instead, joined, one_block

KINDS = ("token", "head", "neuron", "tensor", "coordinate", "mixed")

# The switches of the three partitions that official versions and the paper differ in.
_TENSOR = dict.fromkeys(("neuron", "head", "value", "embedding", "output", "biases"), "tensor")
_ROWS = dict.fromkeys(("neuron", "value", "embedding", "output"), "row")
SCHEMES = {
    "v1.1": {**_ROWS, "head": "head", "biases": "coordinate"},
    "v1.0": {**_TENSOR, "head": "head", "embedding": "coordinate", "output": "coordinate"},
    "tensor": _TENSOR,
}


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
        every = () if self.model is None else (name for name, _ in self.model.named_parameters())
        frozen = [name for name in every if name not in entries]
        for name, how in matched(overrides, {name: name for name in entries}, frozen).items():
            parameter = entries[name][1]
            entries[name] = (from_override(name, parameter.shape, how, _axis_of(self.model, parameter)), parameter)
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
    blocks | parts}, for what the modules do not tell. A name beats a pattern, and a later pattern an earlier one. parts, of a
    fused projection in the order of its rows: (("head", 4), ("head", 2), "row") is 4 query heads, 2 key heads, and values.
    also: parameters that are frozen now and will train later.

    In a projection that interleaves heads (GPT-NeoX), value="tensor" still makes one value block per head.

    Raises Misfit, naming parameter and fix, for attention whose heads are not known or do not divide, and for a bare
    parameter of a Transformer that no module explains.
    """
    from lowmem.blocks.layers import is_lazy
    from lowmem.blocks.roles import find_roles, joined_layers

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
    frozen = [name for name, alias in aliases.items() if not alias]
    by_hand = matched(overrides or {}, {name: alias for name, alias in aliases.items() if alias}, frozen)
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
            blocks = from_override(name, parameter.shape, by_hand[name], _axis_of(model, parameter))
        else:
            blocks = _by_role(name, tuple(parameter.shape), roles[id(parameter)], switches)
        entries[name] = (blocks, parameter)
    settings = {"scheme": scheme, **{k: switches[k] for k in ("value", "embedding", "output", "biases")}}
    unseen = not is_transformer and neurons is None and scheme != "tensor"
    unseen = unseen and (_reads_tokens(model) or _has_heads(model))
    split = joined_layers(model, roles) if is_transformer and neurons is not False and scheme != "tensor" else {}
    _warn_of_guesses(model, sum(blocks.count for blocks, _ in entries.values()) if unseen else None, split, by_hand)
    settings |= {"neurons": neurons, **({"overrides": dict(overrides)} if overrides else {})}
    return Partition(entries, settings, model)


def _axis_of(model: nn.Module | None, parameter: nn.Parameter) -> int:
    """Where the outputs of the layer lie whose weight this is; 0 for other parameters."""
    from lowmem.blocks.layers import is_transposed, weight_of

    layers = (m for m in model.modules() if weight_of(m) is parameter) if model is not None else ()
    return next(map(is_transposed, layers), 0)


def _reads_tokens(model: nn.Module) -> bool:
    """Whether a model has token tables, and norms or several layers, but no recurrent one: it may be a Transformer of
    unusual words."""
    from lowmem.blocks.layers import NORMS, is_embedding, is_linear, words

    kinds = list(model.modules())
    norm = any(isinstance(m, NORMS) or "norm" in " ".join(words(type(m).__name__)) for m in kinds)
    several = sum(map(is_linear, kinds)) > 2
    return any(map(is_embedding, kinds)) and (norm or several) and not any(isinstance(m, nn.RNNBase) for m in kinds)


def _has_heads(model: nn.Module) -> bool:
    """Whether modules say how many heads they have and hold several layers: attention of unusual words, but not of graphs."""
    from lowmem.blocks.heads import HEADS
    from lowmem.blocks.layers import is_linear, words

    for module in model.modules():
        heads = [module.__dict__.get(name) for name in HEADS]
        several = sum(is_linear(child) for child in module.children()) > 1
        graph = {"graph", "gat"} & set(words(type(module).__name__))
        if several and not graph and any(type(count) is int and count > 1 for count in heads):
            return True
    return False


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
    example = ", ".join(f"{key!r}: {_suggested(key)}" for key in keys)
    raise Misfit(
        f"{name}: {role.why}; pass overrides={{{example}}}, with 'row', 'column', 'coordinate', the number of heads (of "
        "queries or keys) or parts like (('head', 4), ('head', 2), 'row') (of a fused projection) where that is right, or "
        "neurons=False if this model is not a Transformer"
    )


def _suggested(name: str) -> str:
    """What an override of a parameter may look like, by the words of its name: rows are wrong for queries and keys."""
    from lowmem.blocks.layers import words

    words_in_name = {word for part in name.split(".")[-3:] for word in words(part)}
    asked = {"q", "k", "wq", "wk", "query", "key", "queries", "keys", "qkv", "wqkv", "qk", "kv", "attn"}
    return instead("head" if words_in_name & asked else "neuron")


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
        return along(name, shape, "mixed", joined(segments), role.axis)
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
