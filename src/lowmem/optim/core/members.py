"""From what a user hands over (a model, a partition, parameters, groups) to named parameters and their blocks.

Every parameter of a model is held, as torch.optim.AdamW(model.parameters()) holds it, so that a frozen one trains
once it is unfrozen. Blocks are found when a parameter trains for the first time: a frozen one may be of a kind that no
rule places, or (lazy layers) may have no shape yet.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable

from torch import Tensor, nn

from lowmem.blocks import ParamBlocks, Partition, coordinates, one_block, partition
from lowmem.blocks.layers import is_lazy
from lowmem.optim.core.checks import Watch, check_wrapping
from lowmem.optim.core.copies import Link
from lowmem.optim.core.sharding import Shards, is_dtensor, shard_of


class Members:
    """What an optimizer knows of its parameters: their names, their blocks, and the model that they belong to.

    kind: the optimizer's name, for messages. uses_blocks: whether its rule needs more of a parameter than its shape.
    names, blocks: by parameter. without_blocks: those that have not trained yet. movable: frozen when the model was read,
    so that they may go to another group. left_out: parameters of the model that are in no group on purpose.
    """

    def __init__(self, kind: str, uses_blocks: bool, shards: Shards):
        self.kind, self.uses_blocks, self.shards = kind, uses_blocks, shards
        self.names: dict[nn.Parameter, str] = {}
        self.blocks: dict[nn.Parameter, ParamBlocks] = {}
        self.without_blocks: list[nn.Parameter] = []
        self.movable: set[nn.Parameter] = set()
        self.left_out: set[nn.Parameter] = set()
        self.settings: dict = {}  # of the partition
        self.given = self.now = (
            False  # whether names came with the first group's parameters, and with those of the newest
        )
        self.follow(None)

    def follow(self, model: nn.Module | None) -> None:
        """Watch a model without keeping it alive."""
        self._model = None if model is None else weakref.ref(model)
        self.watch = None if model is None else Watch(model)

    def leave_out(self, parameters: Iterable[nn.Parameter]) -> None:
        """Parameters of the model that no group has: on purpose, but for those that are frozen and may be unfrozen."""
        self.left_out = {p for p in parameters if p.requires_grad}
        if self.watch is not None:
            self.watch.frozen = [p for p in parameters if not p.requires_grad]

    @property
    def model(self) -> nn.Module | None:
        """The model, if there was one and it is still alive."""
        return None if self._model is None else self._model()

    def read(self, params, model: nn.Module | None, settings: dict) -> tuple[list, bool]:
        """Names, blocks and the model of what a user gave. (groups as torch takes them, whether they are all the model's)."""
        if params is None and model is None:
            raise TypeError(f"{self.kind} takes a model, parameters, (name, parameter) pairs or groups, not None")
        if isinstance(params, nn.Module) and model is None:
            params, model = None, params
        check_wrapping(getattr(params, "model", model))
        if isinstance(params, Partition):
            if settings:
                raise ValueError(f"{', '.join(settings)}: the partition is already made; pass these to partition()")
            known, model, params, settings = params, params.model, None, params.settings
        else:
            known = partition(model, **settings) if model is not None and self.uses_blocks else None
        self.settings = settings
        if model is not None:
            self.follow(model)
            self.names = {p: name for name, p in model.named_parameters()}
        if known is not None:
            self.blocks = {p: known[name] for name, p in known.named_parameters()}
            self.names.update({p: name for name, p in known.named_parameters()})
        if params is None:
            pairs = list(known.named_parameters() if model is None else model.named_parameters())
            return [{"params": pairs}], True
        if self.uses_blocks and known is None:
            warnings.warn(
                f"{self.kind} got parameters without a model, so every tensor is one block, which is unstable "
                f"for Transformers; pass the model itself, or {self.kind}(groups, model=model)",
                stacklevel=4,
            )
        return params, False

    def named(self, group: dict) -> list[tuple[str | None, Tensor]]:
        """A new group's parameters with their names: those given, else the model's, else None. Refuses what torch refuses."""
        if (model := self.model) is not None:
            self.names = {**{p: name for name, p in model.named_parameters()}, **self.names}
        members = group["params"]
        if isinstance(members, set):
            raise TypeError("parameters in a set have no order, which saved states need; pass a list")
        members = [members] if isinstance(members, Tensor) else list(members)
        given = [isinstance(m, tuple) for m in members]
        if any(given) and not all(given):
            raise ValueError(
                "some parameters have names and some have none; pass (name, parameter) pairs for all of them"
            )
        self.now = all(given) or bool(group.get("param_names"))
        names = group.get("param_names") or [None] * len(members)
        pairs = members if all(given) else list(zip(names, members, strict=True))
        return [(name if name is not None else self.names.get(p), p) for name, p in pairs]

    def as_torch(self, groups: list[dict], group: dict, named: list[tuple[str | None, nn.Parameter]]) -> dict:
        """A new group as torch takes it beside `groups`: names are in all groups or in none; those without parameters
        follow the others. ValueError where only this one or only those before it have names."""
        filled = [other for other in groups if other["params"]]
        if filled:
            with_names = "param_names" in filled[0]
            unknown = not with_names or not all(name for name, _ in named)
            if self.model is None and self.given != self.now and named and unknown:
                raise ValueError(
                    "some parameter groups have names and some have none; pass (name, parameter) pairs for all of them"
                )
        else:
            with_names, self.given = all(name for name, _ in named) and bool(named or self.names), self.now
            for other in groups:
                other.pop("param_names", None)
                other |= {"param_names": []} if with_names else {}
        group = {key: value for key, value in group.items() if key != "param_names"} | {"params": [p for _, p in named]}
        names = [name or f"parameter {len(self.blocks) + i}" for i, (name, _) in enumerate(named)]
        return {**group, "param_names": names} if with_names else group

    def enter(self, named: list[tuple[str | None, nn.Parameter]]) -> None:
        """Note what torch has taken: names, and blocks of what trains."""
        self.names.update({p: name for name, p in named if name is not None and p not in self.names})
        self.without_blocks = [
            *self.without_blocks,
            *(p for _, p in named if p not in self.blocks or is_dtensor(p)),
        ]
        self._check_real([p for _, p in named if p.requires_grad and not is_lazy(p)])
        self.find_blocks()

    def release(self, optimizer, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters that were frozen when the model was read, and have no state yet, out of their groups."""
        moving = {p for p in parameters if p in self.movable and not optimizer.state.get(p)}
        if not moving:
            return
        for group in optimizer.param_groups:
            stay = [i for i, p in enumerate(group["params"]) if p not in moving]
            for key in {"params", "param_names"} & group.keys():
                group[key][:] = [group[key][i] for i in stay]
        self.movable -= moving

    def replace(self, parts: dict[nn.Parameter, nn.Parameter]) -> None:
        """Know a part by what was known of its whole parameter, {parameter: part}, and no model any more."""
        self.names = {parts[p]: name for p, name in self.names.items() if p in parts}
        self.blocks = {parts[p]: blocks for p, blocks in self.blocks.items() if p in parts}
        self.without_blocks = []
        self.follow(None)

    def of_whole_params(self, left_out: Iterable[nn.Parameter]) -> Members:
        """A copy for a wrapper that shares the whole parameters out, before `replace`."""
        found = Members(self.kind, self.uses_blocks, Shards())
        found.names, found.left_out = dict(self.names), set(left_out)
        found._model, found.watch = self._model, self.watch
        return found

    # -- blocks --------------------------------------------------------------------------------------------------------

    def blocks_of(self, p: nn.Parameter) -> ParamBlocks:
        """The blocks of one parameter. KeyError where it is none of the optimizer's."""
        if p not in self.blocks and any(p is other for other in self.without_blocks):
            self.find_blocks([p])
        return self.blocks[p]

    def find_blocks(self, parameters: list[nn.Parameter] | None = None) -> None:
        """Blocks of the parameters that train by now (or of those asked for), and their shards."""
        chosen = parameters or self.without_blocks
        ready = [p for p in chosen if (parameters or p.requires_grad) and not is_lazy(p)]
        if not ready:
            return
        self._check_real(ready)
        self._partition([p for p in ready if p not in self.blocks])
        for p in ready:
            if is_dtensor(p):
                self.shards.add(p, shard_of(p))
        self.without_blocks = [p for p in self.without_blocks if p not in self.blocks]

    def _partition(self, parameters: list[nn.Parameter]) -> None:
        """Blocks of parameters that were frozen, or not there, when the model was looked at; warns of guesses."""
        missing = {p: self.names.get(p) for p in parameters}
        model = self.model if self.uses_blocks else None
        if missing and model is not None:
            found = partition(model, **self.settings, also=missing)
            self.blocks |= {p: found[name] for name, p in found.named_parameters() if p in missing}
        for p, name in missing.items():
            if p in self.blocks:
                continue
            shape, label = tuple(p.shape), name or f"parameter {len(self.blocks)}"
            self.blocks[p] = one_block(label, shape) if self.uses_blocks else coordinates(label, shape)
            if self.uses_blocks and self._model is not None and p.numel() > max(shape, default=1):
                problem = (
                    "is not in the model that the optimizer was built from"
                    if model is not None
                    else "has lost its model"
                )
                warnings.warn(f"{label} {problem}, so it is one block", stacklevel=5)

    def _check_real(self, parameters: Iterable[nn.Parameter]) -> None:
        """ValueError for complex parameters."""
        for p in parameters:
            if p.is_complex():
                label = self.names.get(p) or "a parameter"
                raise ValueError(f"{label}: complex parameters are not supported; use torch.view_as_real")

    # -- copies --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict:
        known = {key: value for key, value in self.__dict__.items() if key != "_only"}
        return {**known, "_model": Link(self.model), "watch": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._only = model = self._model.target  # a copy made alone is all that keeps its model
        self.follow(model)
